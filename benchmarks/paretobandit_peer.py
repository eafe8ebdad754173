"""ParetoBandit's own released package on given streams; run by ``benchmarks/paretobandit.py`` with the Python of its environment.

As its paper runs it: priors from the train prompts (its ``generate_warmup_priors`` and its packaged PCA of MiniLM
embeddings), a first pass over the validation prompts in which it learns, then the stream, in which it goes on learning; pacer
in its adaptive mode, all hyperparameters at the package's defaults (they are the paper's), no static cost penalty beside the
pacer, list prices of its ``models_k4.json``, actual costs told to the pacer after every request.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from pathlib import Path

import numpy as np
from pareto_bandit import BanditRouter, generate_warmup_priors
from pareto_bandit.budget_pacer import BudgetPacer, PacingMode
from pareto_bandit.config import DEFAULT_PCA_PATH
from pareto_bandit.feature_service import FeatureService
from pareto_bandit.storage import EphemeralContextStore

PRICES = {
    "meta-llama/llama-3.1-8b-instruct": (0.1, 0.1),
    "mistralai/mistral-large-2512": (0.5, 1.5),
    "google/gemini-2.5-flash": (0.3, 2.5),
    "google/gemini-2.5-pro": (1.25, 10.0),
}
"""US dollars a million prompt and completion tokens."""


def main(folder: Path) -> None:
    """Read ``job.json`` and ``job.npz`` of the folder, write ``actions.npz``: an array (orders, stream) of models a run."""
    logging.disable(logging.WARNING)
    job = json.loads((folder / "job.json").read_text())
    arrays = np.load(folder / "job.npz")
    models, prompts = job["models"], job["prompts"]
    embedded = dict(zip(prompts, arrays["embeddings"], strict=True))
    priors = folder / "priors.joblib"
    generate_warmup_priors(
        [
            {"prompt": prompts[q], "rewards": dict(zip(models, arrays["reward"][q].tolist(), strict=True))}
            for q in arrays["train"]
        ],
        "all-MiniLM-L6-v2",
        DEFAULT_PCA_PATH,
        output_path=priors,
        precomputed_raw_embeddings={hashlib.sha256(text.encode()).hexdigest(): x for text, x in embedded.items()},
    )
    width = arrays["embeddings"].shape[1]
    service = FeatureService(custom_encoder=embedded.__getitem__, embedding_dim=width, pca_path=DEFAULT_PCA_PATH)
    features = service.extract_features_batch(prompts)
    registry = {
        model: {"input_cost_per_m": PRICES[model][0], "output_cost_per_m": PRICES[model][1]} for model in models
    }

    def route(run: dict, seed: int) -> list[int]:
        """Models that one order's requests go to."""
        router = BanditRouter.create(
            model_registry=registry,
            feature_service=FeatureService.for_precomputed(features.shape[1]),
            context_store=EphemeralContextStore(),
            priors=str(priors),
            cost_penalty=0.0,
            budget_pacer=BudgetPacer(target_avg_spend_usd=run["target"], mode=PacingMode.ADAPTIVE),
            bandit_seed=seed,
        )

        def request(question: int, phase: int) -> int:
            model, log = router.route(features[question])
            k = models.index(model)
            log.cost_usd = float(arrays[f"usd_{run['laws'][phase]}"][question, k])
            router.process_feedback(log.request_id, reward=float(arrays[f"reward_{run['laws'][phase]}"][question, k]))
            return k

        for question in np.random.default_rng(seed).permutation(arrays["online"]):
            request(question, 0)
        taken = []
        for place, question in enumerate(arrays[run["orders"]][seed]):
            phase = int(place >= run["change"])
            if place == run["change"] and run["announced"]:
                model, prompt, completion = run["announced"]
                router.update_model_pricing(model, input_cost_per_m=prompt, output_cost_per_m=completion)
            taken.append(request(question, phase))
        return taken

    np.savez(
        folder / "actions.npz",
        **{run["name"]: np.array([route(run, seed) for seed in range(job["orders"])]) for run in job["runs"]},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
