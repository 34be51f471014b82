"""demos.training.adapters: captions of the two splits, and figures before and after."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

import vidattn
from demos.training.adapters import captions, draw, main, measure
from demos.training.vocabulary import BACKGROUNDS, COLOUR_NAMES, NUMBERS, STYLES, concepts, held_out
from tests.linear.test_mixers_patch import flux_weights
from tests.patches.tiny_pipelines import TEXT, build
from vidattn import metrics


def test_captions_keep_to_their_split(tmp_path):
    for unseen in (False, True):
        for caption in captions(40, 3, unseen):
            subject, ground = caption.split(" on ", 1)
            words = subject.split(" ")
            if words[0] in NUMBERS.values():
                words = words[1:]
            assert words[0] in STYLES
            name = " ".join(words[1:])
            assert name in concepts()
            grounds = {
                text.format(a=a, b=b): a
                for text in BACKGROUNDS.values()
                for a in COLOUR_NAMES
                for b in COLOUR_NAMES
            }
            assert held_out(name, grounds[ground]) is unseen
    assert captions(5, 1) == captions(5, 1) != captions(5, 2)
    main(["prompts", "--count", "3", "--out", str(tmp_path / "p.txt")])
    assert (tmp_path / "p.txt").read_text().splitlines() == captions(3, 0)


def test_measure_compares_the_pattern_with_and_without_its_weights(tmp_path):
    pipe = build("flux")
    save_file(flux_weights(pipe.transformer), tmp_path / "adapter.safetensors")
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"pattern": "clear", "weights": "adapter.safetensors", "radius": 1.5}))
    call = {"height": 64, "width": 96, "num_inference_steps": 2, "max_sequence_length": TEXT}
    texts = ["a red dog", "a photo"]
    found = measure(pipe, recipe, texts, call, 5)
    dense = draw(pipe, texts, call, 5)
    expected = {}
    for name, weights in (("before", None), ("after", tmp_path / "adapter.safetensors")):
        with vidattn.patched(pipe, "clear", radius=1.5, min_tokens=0, weights=weights):
            expected[name] = float(metrics.psnr(draw(pipe, texts, call, 5), dense).mean())
    assert torch.isfinite(torch.tensor(list(expected.values()))).all()
    assert {name: found[name]["psnr"] for name in expected} == {k: round(v, 3) for k, v in expected.items()}
    assert expected["before"] != expected["after"]
