"""Serves a network over HTTP: `octvideo serve [RUN|FILE|FOLDER] [--port N]`.

A page to upload videos to, and JSON: POST /predict, POST /timeline, GET /health, /ready, /metrics, /openapi.json.
There is no login and no encryption: beyond this machine, put a proxy in front that has both.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from octvideo.cli.allocator import keep_freed_memory
from octvideo.cli.arguments import Parser, above_zero, asked_views, positive
from octvideo.cli.model_arguments import model_arguments, predictor_of, say_predictor, weights_of
from octvideo.errors import UserError

STOPPED = "stopped"
_MODEL_FILE = "octvideo.json"  # an exported folder has it


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "served", nargs="?", metavar="RUN|FILE|FOLDER", help="in place of --ckpt, or of --model for an exported folder"
    )
    model_arguments(parser)
    parser.shared("views")
    add = parser.add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen at; 0.0.0.0 is all (127.0.0.1)")
    add("--port", type=_port, default=8000, metavar="N", help="to listen at; 0 is any that is free (8000)")
    add("--max_size_mb", type=above_zero, default=200.0, metavar="MB", help="of an upload (200)")
    add("--max_length_sec", type=above_zero, default=600.0, metavar="S", help="of a video (600)")
    add("--queue", type=positive, default=32, metavar="N", help="requests that may wait; more are answered 429 (32)")
    parser.shared("num_workers", default=2, help="videos that are decoded at once (2)")
    add("--batch", type=positive, metavar="N", help="clips of several requests in a call (as the engine likes it)")


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or Ctrl-C, and returns 0; or 130, where it was told twice and did not wait for the end."""
    try:
        from octvideo.serving.limits import Limits
        from octvideo.serving.server import bound_socket, serve, url_of
        from octvideo.serving.service import Service
    except ImportError as error:
        raise UserError(f"this needs FastAPI and uvicorn ({error}): pip install 'octvideo[serve]'") from error
    if args.served is not None:
        if args.ckpt is not None or args.model is not None:
            raise UserError(f"got {args.served} and --ckpt or --model: leave one of them out")
        is_export = (Path(args.served) / _MODEL_FILE).is_file()
        args.ckpt, args.model = (None, args.served) if is_export else (args.served, None)
    limits = Limits(
        max_bytes=max(int(args.max_size_mb * 2**20), 1),
        max_length_sec=args.max_length_sec,
        queue=args.queue,
        workers=args.num_workers,
        batch=args.batch,
    )
    bound = bound_socket(args.host, args.port)
    keep_freed_memory()
    args.output = None  # `predictor_of` looks for results to go on with
    console = Console(stderr=True)
    with console.status("getting the network ready"):
        predictor = predictor_of(args, weights_of(args), "")
        if asked := asked_views(args.views, None, None):
            predictor.use_views(replace(predictor.views, **asked))
        service = Service(predictor, limits)
    say_predictor(predictor, console)
    bound.listen()  # from here on a client waits at worst
    console.print(f"serving at {url_of(bound)} (Ctrl-C stops)", highlight=False, markup=False, soft_wrap=True)
    _log_to_stderr()
    with service:
        in_peace = serve(service, bound)
    if not in_peace:
        sys.stderr.flush()
        os._exit(130)  # threads may hang in a decoder
    return 0


def _port(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 65536:
        raise argparse.ArgumentTypeError(f"got {text}, expected a port, 0 to 65535")
    return value


def _log_to_stderr() -> None:
    handler: Any = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name in ("octvideo.serving", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    logging.getLogger("octvideo.serving").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
