"""Public prompt sets by name, fetched by the library `datasets` where a hub can be reached."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from moe_interp.errors import PromptError
from moe_interp.prompts._files import Row


@dataclass(frozen=True)
class HubSet:
    """Where a set lies on the hub.

    Attributes:
        repository: Its name there.
        configuration: The part of it, if it has several.
        splits: The splits to read, in order.
        columns: The layout's name of each column that is called otherwise there.
        options: What the reader must be told besides.
    """

    repository: str
    configuration: str | None
    splits: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


HUB_SETS = {
    "jbb": HubSet("JailbreakBench/JBB-Behaviors", "behaviors", ("harmful", "benign")),
    "xstest": HubSet("Paul/XSTest", None, ("train",)),
    "harmbench": HubSet(
        "walledai/HarmBench",
        "standard",
        ("train",),
        columns={"prompt": "Behavior", "category": "SemanticCategory"},
    ),
    "strongreject": HubSet(
        "walledai/StrongREJECT", None, ("train",), columns={"prompt": "forbidden_prompt"}
    ),
    "advbench": HubSet("walledai/AdvBench", None, ("train",), columns={"prompt": "goal"}),
    "beavertails": HubSet("PKU-Alignment/BeaverTails", None, ("30k_train",)),
    "saferlhf": HubSet("PKU-Alignment/PKU-SafeRLHF", "default", ("train",)),
    # A table whose cells may be empty: read naively, pandas takes words such as "null" for nothing.
    "wildjailbreak": HubSet(
        "allenai/wildjailbreak",
        "train",
        ("train",),
        options={"delimiter": "\t", "keep_default_na": False},
    ),
}


def fetch_rows(name: str) -> list[Row]:
    """Fetch a public set.

    Args:
        name: A key of `HUB_SETS`.

    Returns:
        Its rows.

    Raises:
        PromptError: If `datasets` is not installed, or cannot fetch the set.
    """
    hub_set = HUB_SETS[name]
    try:
        load_dataset = import_module("datasets").load_dataset
    except ImportError as error:
        raise PromptError(
            f"The prompt set {name!r} ({hub_set.repository}) is fetched by the library "
            "`datasets`, which is not installed. Install it, or download the set and give the "
            "path of its file."
        ) from error
    rows = []
    for split in hub_set.splits:
        try:
            found = load_dataset(
                hub_set.repository, hub_set.configuration, split=split, **hub_set.options
            )
        except Exception as error:
            # Offline, gated or moved: each raises an error of its own kind.
            raise PromptError(
                f"The prompt set {name!r} could not be fetched from {hub_set.repository} "
                f"({type(error).__name__}: {error}). Check the connection and whether you have "
                "accepted its terms, or download the set and give the path of its file."
            ) from error
        for number, values in enumerate(found, start=1):
            renamed = {hub_set.columns.get(key, key): value for key, value in values.items()}
            rows.append(Row(f"{name} ({split}), row {number}", renamed, part=split))
    return rows
