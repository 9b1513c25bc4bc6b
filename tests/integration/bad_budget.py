"""Budgets that make no sense: a part of the table of bad manifests."""

from __future__ import annotations

from tests.integration.bad_manifests import Bad

NUMBER = 'budget: write a whole number above 0, or a decimal in quotes: "7.5"'

BUDGETS = (
    Bad(
        "a budget of nothing", "budget: {}", "spec.budget", "budget: name an upper bound: maxGpuHours, maxCost, or both"
    ),
    Bad("a budget of no hours", "budget: {maxGpuHours: 0}", "spec.budget.maxGpuHours", NUMBER),
    Bad("a budget of no money", 'budget: {maxCost: "0.00"}', "spec.budget.maxCost", NUMBER),
    Bad("a budget below nothing", "budget: {maxGpuHours: -1}", "spec.budget.maxGpuHours", NUMBER),
    Bad("a budget with its currency", 'budget: {maxCost: "20 EUR"}', "spec.budget.maxCost", NUMBER),
    Bad("a budget of too many digits", 'budget: {maxGpuHours: "1.1234567"}', "spec.budget.maxGpuHours", NUMBER),
    Bad(
        "a budget on the CPU",
        "{budget: {maxGpuHours: 5}, compute: {gpus: 0}}",
        "spec",
        "budget: it counts GPU hours, and compute.gpus is 0; remove it, or set compute.gpus",
    ),
)
