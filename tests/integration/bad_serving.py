"""Smoke tests that cannot be asked, retention that means nothing: a part of the table of bad manifests."""

from __future__ import annotations

from tests.integration.bad_manifests import Bad

SERVING_RULES = (
    Bad(
        "a retention that removes nothing",
        "output: {retention: {checkpoints: Keep}}",
        "spec.output.retention",
        "output.retention: it removes nothing; set keepRuns or maxAgeDays, or remove it",
    ),
    Bad(
        "an expected answer to no question",
        "serving: {smokeTest: {contains: Lisbon}}",
        "spec.serving.smokeTest",
        "serving.smokeTest.contains: say in serving.smokeTest.prompt what is asked, or remove it",
    ),
    Bad(
        "a prompt for question answering",
        "{task: QuestionAnswering, serving: {smokeTest: {prompt: 'Who left?'}}}",
        "spec",
        "serving.smokeTest.prompt: QuestionAnswering takes a question and a text, not a prompt; remove it",
    ),
)
