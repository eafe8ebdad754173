"""The same exam taken by two agents, side by side, as an animated picture.

python examples/watch_two_agents.py docs/exam.gif --still docs/exam.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from agents import make_agent, public_problem
from agents.watching import take_exam
from roi_env.envs.single import ROIReasoningEnv

NAMES = {"fixed-3": "naive: always think longest", "lp-lookahead": "planner: knows the odds, spreads the budget"}


def film(agent: str, seed: int, exam: int) -> tuple[list[Image.Image], float]:
    """Frames of an exam, one a decision, and its score."""
    env = ROIReasoningEnv("signal", budget=0.3, render_mode="rgb_array")
    env.reset(seed=seed, options={"exam_ids": exam})
    frames, score = [Image.fromarray(env.render())], 0.0
    for info in take_exam(env, make_agent(agent, public_problem(env.exam_spec)), seed, exam):
        frames.append(Image.fromarray(env.render()))
        score = float(info.get("score", 0.0))
    return frames, score


def side_by_side(left: Image.Image, right: Image.Image, titles: tuple[str, str]) -> Image.Image:
    """Two frames beside each other, a title over each."""
    bar = 40
    page = Image.new("RGB", (left.width + right.width, left.height + bar), "white")
    draw = ImageDraw.Draw(page)
    for x, frame, title in ((0, left, titles[0]), (left.width, right, titles[1])):
        page.paste(frame, (x, bar))
        draw.text((x + 70, 12), title, fill=(40, 40, 40), font=ImageFont.load_default(20))
    return page


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="animated picture (.gif)")
    parser.add_argument("--still", type=Path, help="its last frame (.png)")
    parser.add_argument("--exam", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    films = [film(name, arguments.seed, arguments.exam) for name in NAMES]
    first, second = NAMES.values()
    titles = first, second
    length = max(len(frames) for frames, _ in films)
    left, right = (frames for frames, _ in films)
    pages = [side_by_side(left[min(n, len(left) - 1)], right[min(n, len(right) - 1)], titles) for n in range(length)]
    # Few flat colours: a small palette keeps the file small. The end stays on for a while.
    small = [page.quantize(32) for page in pages]
    small[0].save(arguments.out, save_all=True, append_images=small[1:], duration=[700] * (length - 1) + [4000], loop=0)
    if arguments.still is not None:
        pages[-1].save(arguments.still, optimize=True)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1024:.0f} kB, scores {[score for _, score in films]}")


if __name__ == "__main__":
    main()
