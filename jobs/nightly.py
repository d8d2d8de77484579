"""The night: ingest, train, embed, rank, evaluate, publish. A rerun with the same input and settings skips what is whole.

    python -m jobs.nightly data=online_retail data.path=DIR out=OUT

The last line on stdout is JSON: how the served lists did on the hold-out beside the simple rankers, and the snapshot's id.
"""

from __future__ import annotations

import json
import time

from jobs.embed import embed
from jobs.evaluate import KINDS, RANKERS, evaluate
from jobs.force import check_reason
from jobs.import_consent import import_declared
from jobs.ingest import ingest
from jobs.launch import recipe
from jobs.night import night
from jobs.publish import publish
from jobs.rank import rank
from jobs.settings import Settings
from jobs.train import train

STEPS = (ingest, train, embed, rank, evaluate, publish)
FIGURES = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")


@recipe("nightly")
def main(settings: Settings) -> None:
    """The command."""
    began = time.monotonic()
    check_reason(settings.force)  # now, and not after the hours before it is used
    import_declared(settings)
    with night(settings) as (this, cluster):
        for step in STEPS:
            done = step(this, cluster)
            if step is evaluate:
                metrics = done.facts["metrics"]
    figures = {
        ranker: {
            kind: {name: round(metrics[key], 5) for name in FIGURES if (key := f"{ranker}.{kind}.{name}") in metrics}
            for kind in KINDS
        }
        for ranker in RANKERS
    }
    beyond = {name.removeprefix("served."): round(metrics[name], 5) for name in metrics if name.count(".") == 1}
    print(
        json.dumps(
            figures
            | {"lists": beyond, "snapshot": done.facts["snapshot"], "seconds": round(time.monotonic() - began, 1)}
        )
    )


if __name__ == "__main__":
    main()
