"""The server's command.

    python -m engine.serving out=OUT                    serve what lies in OUT, on 127.0.0.1:50051
    python -m engine.serving out=OUT port=0 log.level=debug
    python -m engine.serving out=OUT --cfg job          print the settings and stop

Every setting stands in conf/serve.yaml. Exit codes: 0 stopped by a signal, 2 a setting or a policy is wrong, 4 the
consent settings.
"""

from __future__ import annotations

import os

# Requests are many and their products small: threads of BLAS would only fight over the cores (measured: a list takes 12
# times as long). It reads this once, when NumPy is loaded.
for _library in ("OPENBLAS", "MKL", "OMP"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import gc  # noqa: E402
import logging  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402

import structlog  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from engine.errors import BodegaError  # noqa: E402
from engine.serving.server import Server  # noqa: E402
from engine.serving.settings import LogSettings, compose_config, load  # noqa: E402

_SWITCH_SECONDS = 0.0005


def main(arguments: Sequence[str]) -> int:
    """Serve until a signal; returns the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)  # noqa: T201
        return 0
    try:
        if "--cfg" in arguments:
            place = arguments.index("--cfg")
            print(OmegaConf.to_yaml(compose_config([*arguments[:place], *arguments[place + 2 :]])))  # noqa: T201
            return 0
        settings = load(arguments)
        server = Server(settings, lambda: load(arguments))
        log_to_stderr(settings.log)
        # A snapshot that is opened beside the one that serves makes objects enough for a full collection, which walks all of
        # numba and Hydra and stops every request for a tenth of a second; and its thread would keep the interpreter for 5 ms
        # at each turn that a request has to wait for.
        gc.collect()
        gc.freeze()
        sys.setswitchinterval(_SWITCH_SECONDS)
        server.run()
    except BodegaError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


def log_to_stderr(settings: LogSettings) -> None:
    """One line an event on standard error: JSON, or colours on a terminal."""
    pretty = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
