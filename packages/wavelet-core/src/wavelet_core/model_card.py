"""The model card of a checkpoint: what it is, how it is used, what was measured, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

UNITS = ("bits_per_byte", "perplexity_per_word", "perplexity_per_token", "bits_per_token", "nats_per_token")
SECTIONS = ("model", "data", "train")


def model_card(
    name: str,
    config: Mapping[str, Any],
    parameters: int,
    license: str | None = None,
    results: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """A card in Markdown, with the metadata that the Hugging Face hub reads.

    name: of the repository. config: the content of config.json. parameters: how many. license: the hub's name of one.
    results: measurements by the splits that they were made on, by the names of `Evaluation.as_dict`.
    """
    results = results or {}
    parts = [_introduction(name, config, parameters), _use(name)]
    parts += [_results(results)] if results else []
    parts += [_training(config), _needs(config)]
    metadata = yaml.safe_dump(_metadata(name, config, license, results), sort_keys=False, allow_unicode=True)
    return f"---\n{metadata}---\n\n" + "\n".join(part for part in parts if part)


def _metadata(
    name: str, config: Mapping[str, Any], license: str | None, results: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    metadata["tags"] = ["wavelet-lm", str(config["model"]["kind"])]
    if license is not None:
        metadata["license"] = license
    if (dataset := _dataset(config)).get("kind") == "hugging_face" and dataset.get("path"):
        metadata["datasets"] = [dataset["path"]]
    if results:
        kind = str(dataset.get("kind", "text"))
        metadata["model-index"] = [
            {
                "name": name.rpartition("/")[2],
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {"name": kind, "type": kind, "split": split},
                        "metrics": [
                            {"type": unit, "value": values[unit]} for unit in UNITS if values.get(unit) is not None
                        ],
                    }
                    for split, values in results.items()
                ],
            }
        ]
    return metadata


def _dataset(config: Mapping[str, Any]) -> Mapping[str, Any]:
    dataset = config.get("data", {}).get("dataset", {})
    return dataset if isinstance(dataset, Mapping) else {"kind": dataset}


def _introduction(name: str, config: Mapping[str, Any], parameters: int) -> str:
    model = config["model"]
    return (
        f"# {name.rpartition('/')[2]}\n\n"
        f"A causal language model of the family `{model['kind']}` with {parameters:,} parameters, for a vocabulary of "
        f"{model['vocabulary_size']:,} tokens and training windows of {model['context_length']:,}. It reads and writes "
        "with a state of fixed size.\n"
    )


def _use(name: str) -> str:
    return f"""## Use

```console
$ pip install "wavelet-cli[transformers]"
$ wavelet generate {name} "Once"
```

```python
from transformers import pipeline

print(pipeline("text-generation", model="{name}")("Once", max_new_tokens=40))
```
"""


def _results(results: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "## Results",
        "",
        "| split | windows of tokens | " + " | ".join(unit.replace("_", " ") for unit in UNITS) + " |",
    ]
    lines.append("|---" * (2 + len(UNITS)) + "|")
    for split, values in results.items():
        window, stride = values.get("window"), values.get("stride")
        windows = "streamed" if window is None else f"{window} every {stride}"
        numbers = ["" if values.get(unit) is None else f"{values[unit]:.4f}" for unit in UNITS]
        lines.append(f"| {split} | {windows} | " + " | ".join(numbers) + " |")
    lines += [
        "",
        "Numbers per token compare only models with this tokenizer; the others compare models on this text.",
        "",
    ]
    return "\n".join(lines)


def _training(config: Mapping[str, Any]) -> str:
    sections = {section: config[section] for section in SECTIONS if section in config}
    text = yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)
    if not {"data", "train"} <= sections.keys():
        return f"## Configuration\n\n```yaml\n{text}```\n"
    steps = f"{config['step']:,} steps of " if isinstance(config.get("step"), int) else ""
    return f"""## Training

It was made by {steps}`wavelet train run.yaml --out run` with this `run.yaml`:

```yaml
{text}```
"""


def _needs(config: Mapping[str, Any]) -> str:
    owners = sorted(set(config.get("components", {}).values()))
    return "" if not owners else "Its parts come from " + ", ".join(f"`{owner}`" for owner in owners) + ".\n"
