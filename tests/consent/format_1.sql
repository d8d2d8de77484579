-- A ledger as the code of format 1 wrote it: four people, two calls of one of them, an import, a preference alone.
-- Keys are the first 16 bytes of SHA-256 over '1' to '4'.
BEGIN TRANSACTION;
CREATE TABLE consent_changes (
	user_key BLOB NOT NULL,
	sequence BIGINT NOT NULL,
	position INTEGER NOT NULL,
	purpose TEXT NOT NULL,
	source TEXT NOT NULL,
	covers TEXT,
	granted BOOLEAN NOT NULL,
	preference SMALLINT,
	notice_version TEXT NOT NULL,
	actor TEXT NOT NULL,
	request_id TEXT,
	receipt_id TEXT,
	imported BOOLEAN NOT NULL,
	recorded_at BIGINT NOT NULL,
	occurred_at BIGINT,
	PRIMARY KEY (user_key, sequence, position)
)
 WITHOUT ROWID

;
INSERT INTO "consent_changes" VALUES(X'4B227777D4DD1FC61C6F884F48641D02',4,0,'profile','store',NULL,1,NULL,'notice-0','operator',NULL,NULL,1,1795405194201098,1746403200000000);
INSERT INTO "consent_changes" VALUES(X'4B227777D4DD1FC61C6F884F48641D02',4,1,'profile','store',NULL,0,NULL,'notice-0','operator',NULL,NULL,1,1795405194201098,1749081600000000);
INSERT INTO "consent_changes" VALUES(X'4E07408562BEDB8B60CE05C1DECFE3AD',5,0,'profile','','web app store',1,NULL,'notice-0','operator',NULL,NULL,1,1795405194201098,NULL);
INSERT INTO "consent_changes" VALUES(X'4E07408562BEDB8B60CE05C1DECFE3AD',6,0,'','',NULL,0,2,'','person','r1','eb5ec68b54c7d382e0aa4a4119facd89',0,1795405194240705,NULL);
INSERT INTO "consent_changes" VALUES(X'6B86B273FF34FCE19D6B804EFF5A3F57',1,0,'profile','','web app store',1,NULL,'notice-1','person','r1','abcd13a643da283c9c21c73990bfcd73',0,1795405193877687,1767312000000000);
INSERT INTO "consent_changes" VALUES(X'6B86B273FF34FCE19D6B804EFF5A3F57',1,1,'train','web',NULL,1,NULL,'notice-1','person','r1','abcd13a643da283c9c21c73990bfcd73',0,1795405193877687,1767312000000000);
INSERT INTO "consent_changes" VALUES(X'6B86B273FF34FCE19D6B804EFF5A3F57',1,2,'','',NULL,0,3,'notice-1','person','r1','abcd13a643da283c9c21c73990bfcd73',0,1795405193877687,1767312000000000);
INSERT INTO "consent_changes" VALUES(X'6B86B273FF34FCE19D6B804EFF5A3F57',3,0,'profile','app',NULL,0,NULL,'notice-2','person','r2','218ac9f5035578ee6bc27058895ff0da',0,1795405193886411,NULL);
INSERT INTO "consent_changes" VALUES(X'D4735E3A265E16EEE03F59718B9B5D03',2,0,'profile','web',NULL,1,NULL,'notice-1','guardian',NULL,'ff80e02fb2748dc749d47a8b1075e5a0',0,1795405193883029,NULL);
CREATE TABLE consent_current (
	user_key BLOB NOT NULL,
	granted TEXT NOT NULL,
	preference SMALLINT NOT NULL,
	sequence BIGINT NOT NULL,
	PRIMARY KEY (user_key)
)
 WITHOUT ROWID

;
INSERT INTO "consent_current" VALUES(X'4B227777D4DD1FC61C6F884F48641D02','',0,4);
INSERT INTO "consent_current" VALUES(X'4E07408562BEDB8B60CE05C1DECFE3AD','profile/app profile/store profile/web',2,6);
INSERT INTO "consent_current" VALUES(X'6B86B273FF34FCE19D6B804EFF5A3F57','profile/store profile/web train/web',3,3);
INSERT INTO "consent_current" VALUES(X'D4735E3A265E16EEE03F59718B9B5D03','profile/web',0,2);
CREATE TABLE consent_ledger (
	id INTEGER NOT NULL,
	format INTEGER NOT NULL,
	sequence BIGINT NOT NULL,
	stable_key TEXT NOT NULL,
	PRIMARY KEY (id)
);
INSERT INTO "consent_ledger" VALUES(1,1,6,'0123abcd');
CREATE UNIQUE INDEX consent_requests ON consent_changes (user_key, request_id, position) WHERE request_id IS NOT NULL;
COMMIT;
