"""Where page and card lie: the page beside the report, the card with the model."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.reports import Environment, EvaluateReport
from finetune_trainer import artifacts
from finetune_trainer.context import StageContext
from finetune_trainer.reporting.card import card
from finetune_trainer.reporting.facts import collect
from finetune_trainer.reporting.page import page


def leave_report(context: StageContext, report: EvaluateReport, notes: Sequence[str], environment: Environment) -> None:
    """Write both anew. The model's manifest does not vouch for the card: each measurement writes another."""
    facts = collect(context, report, notes, environment)
    artifacts.write_json(context.page_path, page(facts))
    artifacts.write_json(context.card_path, card(facts))
