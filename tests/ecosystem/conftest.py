"""Small checkpoints of several families, with a byte-pair tokenizer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wavelet_core import build_model
from wavelet_core.config import parse_model
from wavelet_core.generation import DecodingSession, GenerationSettings, generate
from wavelet_core.tokenizers import BytePairTokenizer
from wavelet_train.byte_pair import train_byte_pair

SOURCE = Path(json.__file__).with_name("decoder.py").read_text(encoding="utf-8")
VOCABULARY = 400
FAMILIES = {
    "wavelet": {"width": 16, "levels": 2, "layers": 1, "memories": ["mlp"]},
    "transformer": {"kind": "transformer", "width": 16, "layers": 1, "heads": 2, "capacity": 64},
    "residual_lstm": {"kind": "residual_lstm", "width": 16, "layers": 1},
    "gated_delta_net": {"kind": "gated_delta_net", "width": 16, "layers": 1, "heads": 2},
}


@pytest.fixture(scope="session")
def tokenizer():
    return train_byte_pair(BytePairTokenizer.Config(vocabulary_size=VOCABULARY), [SOURCE])


@pytest.fixture(scope="session")
def checkpoints(tokenizer, tmp_path_factory):
    """A checkpoint directory for each family; nobody writes into them."""
    directories = {}
    for name, content in FAMILIES.items():
        torch.manual_seed(0)
        model = build_model(parse_model({"vocabulary_size": VOCABULARY, "context_length": 32, **content}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        directories[name] = tmp_path_factory.mktemp("checkpoints") / name
        model.save_pretrained(directories[name], tokenizer)
    return directories


@pytest.fixture(scope="session")
def greedy():
    """greedy(model, prompt, number): the tokens that our own greedy decoding writes."""

    def write(model, prompt, number):
        settings = GenerationSettings(tokens=number, samplers=[{"kind": "temperature", "temperature": 0}])
        return [step.token for step in generate(DecodingSession(model), [prompt], settings, seeds=[0])]

    return write


@pytest.fixture(scope="session")
def fresh_process():
    """Run a program in a process that has imported nothing, without what this one has in its path; its output."""

    def run(program, *arguments):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            env={**environment, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
