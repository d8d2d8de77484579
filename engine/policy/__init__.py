"""Live rules as an ordered chain: candidates in, a list out, and for whatever is missing the rule and the reason."""

from engine.policy.chain import Chain, Effect, Outcome, Step
from engine.policy.explaining import Act, acts_on, acts_on_all
from engine.policy.listing import make_list
from engine.policy.loading import load_policies
from engine.policy.rules.consent import allowed, resolve
from engine.policy.slate import Alternatives, Moment, Rule, Slate, Verdict, everyone

__all__ = [
    "Act", "Alternatives", "Chain", "Effect", "Moment", "Outcome", "Rule", "Slate", "Step", "Verdict", "acts_on",
    "acts_on_all", "allowed", "everyone",
    "load_policies", "make_list", "resolve",
]  # fmt: skip
