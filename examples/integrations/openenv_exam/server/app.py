"""Serves exams: ``uvicorn server.app:app``, or ``python -m server.app --port 8000``."""

import argparse

import uvicorn

from roi_env.integrations.openenv import application

EXAMS = {"family": "signal", "num_tasks": 10, "budget": 0.3, "preview": False}
app = application(sessions=8, **EXAMS)


def main() -> None:
    """Serve until it is interrupted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--num-tasks", type=int, default=EXAMS["num_tasks"])
    parser.add_argument("--sessions", type=int, default=8, help="most at a time")
    arguments = parser.parse_args()
    served = application(sessions=arguments.sessions, **{**EXAMS, "num_tasks": arguments.num_tasks})
    uvicorn.run(served, host=arguments.host, port=arguments.port)


if __name__ == "__main__":
    main()
