"""Names, counts, files and timm's registry, for all families at once."""

import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from vidattn.backbones import create_model, list_models
from vidattn.backbones.parameter_table import agrees, counted
from vidattn.backbones.registry import families

TINY = {"embed_dim": 8, "depths": (1, 1, 1, 1), "heads": 1, "kernel_size": 3}


@pytest.mark.parametrize("name", list_models())
def test_the_number_of_parameters_is_the_published_one(name):
    family = next(f for f in families() if name in f.configs)
    assert agrees(counted(name), family.parameters[name])


def test_every_family_is_complete():
    for family in families():
        assert set(family.parameters) == set(family.configs)
        assert set(family.checkpoints) <= set(family.configs)
        assert "arXiv" in family.paper


def test_list_models_filters():
    assert list_models("nat_*") == ["nat_base", "nat_mini", "nat_small", "nat_tiny"]
    assert list_models("no_such*") == []
    assert len(list_models()) == len(set(list_models()))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nat_tinny", {}, "did you mean 'nat_tiny'"),
        ("nat_mini", {"num_class": 3}, "num_class=3"),
        ("nat_mini", {"global_pool": "middle"}, "global_pool='middle'"),
        ("nat_mini", {"num_classes": -1}, "num_classes=-1"),
    ],
)
def test_bad_arguments(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)


def test_files_that_do_not_fit(tmp_path):
    pickle = tmp_path / "nat.pth"
    torch.save({}, pickle)
    with pytest.raises(ValueError, match="pickles"):
        create_model("nat_mini", pickle, **TINY)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        create_model("nat_mini", tmp_path / "none.safetensors", **TINY)
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match="not a safetensors file"):
        create_model("nat_mini", tmp_path / "text.safetensors", **TINY)
    state = create_model("nat_mini", **TINY).state_dict()
    state["norm.bias"] = torch.zeros(3)
    state["extra"] = state.pop("norm.weight")
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(
        ValueError, match=r"missing: norm.weight; unexpected: extra; other shapes: norm.bias \(3,\)"
    ):
        create_model("nat_mini", tmp_path / "other.safetensors", **TINY)


def test_pruning_keeps_what_is_wanted():
    model = create_model("nat_mini", **TINY)
    image = torch.randn(1, 3, 64, 64)
    _, maps = model.forward_intermediates(image)
    count = sum(p.numel() for p in model.parameters())
    assert model.prune_intermediate_layers([0, -2]) == [0, 2]
    assert sum(p.numel() for p in model.parameters()) < count
    left = model.forward_intermediates(image, [0, 2], intermediates_only=True)
    assert all(torch.equal(a, maps[i]) for a, i in zip(left, (0, 2), strict=True))
    with pytest.raises(ValueError, match="3 feature maps"):
        model.forward_intermediates(image, [3])


def test_timm_gets_every_model(monkeypatch):
    """A stand-in with the two functions of timm's that are used, as timm 1.0.31 has them."""
    entries = {}
    models = types.ModuleType("timm.models")

    def register_model(fn):
        assert hasattr(sys.modules[fn.__module__], fn.__name__) is False
        assert fn.__name__ in sys.modules[fn.__module__].default_cfgs
        entries[fn.__name__] = fn
        return fn

    def build_model_with_cfg(model_cls, variant, pretrained, feature_cfg=None, **kwargs):
        assert feature_cfg["feature_cls"] == "getter"
        model = model_cls(**kwargs)
        model.variant = variant
        return model

    models.register_model, models.build_model_with_cfg = register_model, build_model_with_cfg
    models.is_model = lambda name: name in entries
    monkeypatch.setitem(sys.modules, "timm", types.ModuleType("timm"))
    monkeypatch.setitem(sys.modules, "timm.models", models)
    monkeypatch.delitem(sys.modules, "vidattn.backbones.timm_register", raising=False)
    import vidattn.backbones.timm_register as timm_register

    assert sorted(entries) == [f"vidattn_{name}" for name in list_models()]
    assert timm_register.register() == [f"vidattn_{n}" for f in families() for n in f.configs]
    model = entries["vidattn_nat_mini"](num_classes=4, **TINY)
    assert model.variant == "vidattn_nat_mini"
    assert model.get_classifier().out_features == 4
    monkeypatch.delitem(sys.modules, "vidattn.backbones.timm_register")


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.models", None)
    monkeypatch.delitem(sys.modules, "vidattn.backbones.timm_register", raising=False)
    with pytest.raises(ImportError, match=r"vidattn\[timm\]"):
        import vidattn.backbones.timm_register  # noqa: F401
