"""Hypothesis strategies: small grids and every kind of pattern."""

from itertools import pairwise

from hypothesis import strategies as st

from vidattn.patterns import (
    Disc,
    Full,
    Groups,
    Hierarchical,
    Neighborhood,
    Radial,
    Segments,
    SemanticClusters,
    SlidingTile,
    SlidingWindow,
    SparseVideoGen,
    Spatial,
    Temporal,
    TopK,
)


def grids():
    """(T, H, W) with odd and prime extents, 1 to about 300 tokens."""
    video = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 7))
    image = st.tuples(st.just(1), st.integers(1, 19), st.integers(1, 17))
    row = st.tuples(st.just(1), st.just(1), st.integers(1, 150))
    return video | image | row


@st.composite
def neighborhoods(draw):
    window = draw(st.tuples(*(st.integers(1, 9) for _ in range(3))))
    stride = tuple(draw(st.integers(1, w)) for w in window)
    dilation = draw(st.tuples(*(st.integers(1, 3) for _ in range(3))))
    return Neighborhood(window, stride, dilation, draw(st.tuples(*(st.booleans() for _ in range(3)))))


def patterns():
    """Any pattern, with parameters that suit the grids above."""
    sizes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
    return st.one_of(
        st.just(Full()),
        neighborhoods(),
        st.builds(Neighborhood, st.integers(1, 9) | st.tuples(st.integers(1, 9), st.integers(1, 9))),
        st.builds(
            SlidingWindow, st.integers(1, 9), st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9))
        ),
        st.builds(Disc, st.integers(1, 9) | st.floats(0.5, 9.0)),
        st.builds(Groups, sizes, st.just("blocks"), st.integers(0, 2)),
        st.builds(Groups, sizes, st.just("cross"), cross=st.sampled_from(["planes", "lines"])),
        st.builds(Hierarchical, sizes, st.sampled_from(["close", "remote"])),
        st.builds(SlidingTile, sizes, st.tuples(*(st.integers(1, 5) for _ in range(3)))),
        st.builds(Spatial, st.floats(0.01, 3.0), st.booleans()),
        st.builds(Temporal, st.floats(0.01, 3.0), st.booleans()),
        st.builds(
            Radial,
            st.floats(0.1, 1.0),
            st.sampled_from(["paper", "release"]),
            st.booleans(),
            st.integers(1, 9),
        ),
    )


@st.composite
def segments(draw, layout):
    """Segments of a layout, counted in tokens or, where its text is not padded, in frames."""
    frames = draw(st.booleans())
    runs = [layout.text_before, layout.grid[0], layout.text_after] if frames else [layout.tokens]
    lengths = [n for run in runs for n in draw(pieces(run))]
    rows = st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)).filter(any)
    return Segments(lengths, [draw(rows) for _ in lengths])


@st.composite
def pieces(draw, total):
    """Positive integers with this sum, at most four."""
    edges = draw(st.lists(st.integers(0, total), max_size=3))
    edges = sorted({0, total, *edges})
    return [b - a for a, b in pairwise(edges)]


def topks():
    sizes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
    keep = st.floats(0.01, 1.0)
    return st.builds(
        TopK,
        keep,
        sizes,
        st.sampled_from(["mean", "smooth", "mass"]),
        st.floats(0.05, 1.0),
        st.none() | st.floats(-1, 1),
    )


def data_patterns():
    """Patterns whose mask depends on the data, or that are sums."""
    weights = st.none() | st.floats(0.0, 1.0).map(lambda w: (w, 1 - w))
    return st.one_of(
        topks(),
        st.builds(SparseVideoGen, st.floats(0.01, 3.0), st.booleans(), st.integers(1, 70)),
        st.builds(Hierarchical, st.integers(1, 5), st.just("close+remote"), weights),
        st.builds(
            SemanticClusters,
            st.integers(1, 9),
            st.integers(1, 9),
            keep=st.floats(0.01, 1.0),
            tile=st.integers(1, 9),
        ),
        st.builds(Disc, st.integers(1, 9), st.integers(2, 5)),
    )
