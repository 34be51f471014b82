"""Hypothesis strategies: small grids and every kind of pattern."""

from hypothesis import strategies as st

from vidattn.patterns import (
    Disc,
    Full,
    Groups,
    Neighborhood,
    Radial,
    SlidingTile,
    SlidingWindow,
    Spatial,
    Temporal,
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
