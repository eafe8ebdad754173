"""Classical planners, by name; modules are imported when an agent is made."""

from typing import Any

from agents.base import register as _register

_ENTRIES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("random", "fixed:Random", "uniform over the legal actions", {}),
    ("skip", "fixed:Skip", "attempts nothing", {}),
    ("fixed", "fixed:Fixed", "always one tier (parameter tier: number from 1, name or 'top')", {}),
    ("fixed-1", "fixed:Fixed", "always the cheapest tier", {"tier": 1}),
    ("fixed-2", "fixed:Fixed", "always the second tier", {"tier": 2}),
    ("fixed-3", "fixed:Fixed", "always the third tier", {"tier": 3}),
    ("uniform-share", "share:UniformShare", "best tier whose expected cost is at most B / N", {}),
    ("remaining-share", "share:RemainingShare", "best tier within remaining / tasks left", {}),
    ("roi", "threshold:ROI", "best value per token, if above a threshold tuned in training", {}),
    ("zcl", "threshold:ZCL", "online knapsack threshold (Zhou, Chakrabarty, Lukose 2008)", {}),
    ("bid-price", "price:BidPrice", "static price of the fluid LP (Talluri, van Ryzin 1998)", {}),
    ("population-bid-price", "price:PopulationBidPrice", "price of the average task at remaining / tasks left", {}),
    ("dual-descent", "price:DualDescent", "multiplicative dual pacing (Balseiro, Lu, Mirrokni 2020)", {}),
    ("resolve", "price:Resolve", "fluid LP solved again at every task (Jasin, Kumar 2012)", {}),
    ("resolve-few", "price:ResolveFew", "fluid LP solved again a few times", {}),
    ("resolve-guarded", "price:ResolveGuarded", "resolve that values attempts as the budget cuts them", {}),
    ("lp-lookahead", "price:LPLookahead", "one exact step, then the fluid LP's value: the reference planner", {}),
    ("ce-dp", "mean_dp:MeanCostDP", "dynamic programming on mean costs", {}),
    ("greedy-knapsack", "greedy:GreedyKnapsack", "the paper's: smallest predicted level first, while B lasts", {}),
    ("hindsight-optimisation", "hindsight_optimisation:HindsightOptimisation",
     "one exact step, then the expected clairvoyant value over 64 scenarios", {}),
    ("bwk-ucb", "bandits:BanditWithKnapsacks", "bandit with knapsacks: optimistic estimates, learned in 500 exams",
     {"kind": "ucb"}),
    ("bwk-thompson", "bandits:BanditWithKnapsacks", "bandit with knapsacks: sampled estimates, learned in 500 exams",
     {"kind": "thompson"}),
    ("plugin-bellman", "dynamic_programming:PluginBellman", "dynamic programming on laws counted from 540 attempts", {}),
    ("bellman", "dynamic_programming:Bellman", "dynamic programming on the published beliefs", {}),
    ("online-lp", "online:OnlineLP", "fluid LP on beliefs that are updated with every answer of the exam (live exams)", {}),
    ("online-lp-fading", "online:OnlineLP", "the same where answers fade: for prices and models that change within an exam",
     {"strength": 16.0, "memory": 200.0}),
    ("belief-bellman", "belief:BeliefBellman", "dynamic programming over budget and belief about the exam's latent state",
     {}),
    ("optimum", "dynamic_programming:optimum", "the best policy for the evaluated exams' own published laws", {}),
)  # fmt: skip

for _name, _target, _summary, _params in _ENTRIES:
    # The optimum plans with the evaluated source's own laws: a reference, not a contestant.
    _register(_name, f"agents.planners.{_target}", _summary, privileged=_name == "optimum", **_params)
