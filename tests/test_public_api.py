"""The public names and the order of their arguments: changing them breaks users."""

import inspect

import pytest

import vidattn

NAMES = """
    TokenLayout __version__ attention linear_attention merge_attentions na1d na2d na3d patch patched patterns
    report supported unpatch
""".split()
PATTERNS = "Disc Full Groups Neighborhood Radial SlidingWindow from_dict from_text".split()
NATTEN = (
    "query key value kernel_size stride dilation is_causal scale additional_keys additional_values return_lse"
    " backend"
)
SIGNATURES = {
    "na1d": NATTEN,
    "na2d": NATTEN,
    "na3d": NATTEN,
    "attention": "query key value pattern layout * scale return_lse backend",
    "linear_attention": "query key value * feature_map normalize eps backend",
    "merge_attentions": "outputs lses",
    "TokenLayout": "grid text_before text_after text_valid",
    "patch": (
        "pipe_or_model pattern * weights dense_steps dense_last_steps dense_layers min_tokens backend strict"
        " **preset_options"
    ),
    "unpatch": "pipe_or_model",
}


def test_the_public_names():
    assert sorted(vidattn.__all__) == sorted(NAMES)
    assert set(NAMES) <= set(dir(vidattn))
    for name in NAMES:
        assert getattr(vidattn, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        vidattn.no_such_name  # noqa: B018  (the access is the test)


def test_the_patterns():
    assert set(PATTERNS) <= set(vidattn.patterns.__all__)


def test_the_version_is_that_of_the_installation():
    from importlib.metadata import version

    assert vidattn.__version__ == version("vidattn")


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_order_of_arguments(name: str):
    words = []
    for parameter in inspect.signature(getattr(vidattn, name)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        words.append("**" * (parameter.kind is parameter.VAR_KEYWORD) + parameter.name)
    assert " ".join(words) == SIGNATURES[name]
