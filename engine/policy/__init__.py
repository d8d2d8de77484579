"""Live rules as an ordered chain: candidates in, a list out, and for whatever is missing the rule and the reason."""

from engine.policy.chain import Chain, Effect, Outcome
from engine.policy.listing import make_list
from engine.policy.loading import load_policies
from engine.policy.rules.consent import allowed, resolve
from engine.policy.slate import Alternatives, Moment, Rule, Slate, Verdict

__all__ = [
    "Alternatives", "Chain", "Effect", "Moment", "Outcome", "Rule", "Slate", "Verdict", "allowed", "load_policies",
    "make_list", "resolve",
]  # fmt: skip
