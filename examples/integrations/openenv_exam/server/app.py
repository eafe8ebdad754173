"""Serves exams: ``uvicorn server.app:app``, or ``python -m server.app --port 8000``."""

import argparse

import uvicorn

from roi_env.integrations.openenv import application

app = application(sessions=8, family="signal", num_tasks=10, budget=0.3, preview=False)


def main() -> None:
    """Serve until it is interrupted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    uvicorn.run(app, host=arguments.host, port=arguments.port)


if __name__ == "__main__":
    main()
