"""What tables of labeler alignment would take."""

from __future__ import annotations

from rlaif.constitution import load_constitution
from rlaif.evaluate.certificate_pairs import asked_about
from rlaif.judge.ask import Tiers
from rlaif.plan.calls import Calls, tails_of
from rlaif.plan.history import History
from rlaif.plan.voices import voice_of
from rlaif.plan.workload import Workload
from rlaif.recipe import LeeConfig
from rlaif.recipe.lee_tables import check_styles
from rlaif.stages.lee_tables import prepare, showing, styles_of, votes_of

STAGE = "lee-tables"


def of_tables(config: LeeConfig, history: History) -> Workload:
    """Every judge in every way. Raises SetupError for what the tables would be refused for."""
    ways = []
    for i, model in enumerate(config.judge.models):
        # For a mistake to be told by its own field: what follows knows `judge.model` alone.
        voice_of(model, f"judge.models[{i}].model")
        check_styles(config, model)
        ways += styles_of(model, config.judge, config.styles, config.shots)
        if config.self_consistency:
            ways += votes_of(model, config.judge, config.self_consistency)
    prepared = prepare(config.human, max(config.shots), config.seed)
    constitution, _ = load_constitution(config.judge.constitution)
    pairs = asked_about(prepared.chosen)
    asked = [
        (way.config, Tiers(way.config, shown, config.seed))
        for way in ways
        if way.config is not None
        for shown in [showing(constitution, prepared.examples[: way.row.shots])]
    ]
    history.know(tail for judge, tiers in asked for tail in tails_of(judge, tiers))
    calls = Calls(history)
    for judge, tiers in asked:
        calls.judge(STAGE, judge, tiers, pairs, {})
    return Workload((STAGE,), calls, {}, {})
