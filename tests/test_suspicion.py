"""Finding the message over which a broker hangs up."""

from adapter.suspicion import Suspicion


def test_the_one_that_is_alone_each_time_is_found() -> None:
    """Two hang-ups with messages in common have them sent one by one; three with the same one alone are proof."""
    suspicion = Suspicion()
    for awaited in ([5, 6, 7], [7, 8, 9]):
        assert not suspicion.probing
        assert suspicion.hung_up(awaited, alone=False) is None
    for _ in range(2):
        assert suspicion.probing
        assert suspicion.hung_up([7], alone=True) is None

    assert suspicion.hung_up([7], alone=True) == 7
    assert not suspicion.probing


def test_what_was_not_alone_is_not_found() -> None:
    """However often a connection ends: with others on their way, or before it stood, it proves nothing."""
    suspicion = Suspicion()

    assert [suspicion.hung_up(["topic", 1], alone=False) for _ in range(50)] == [None] * 50


def test_another_or_nothing_on_its_way_begins_anew() -> None:
    """A connection that ends with nothing on its way, or with another message, ends for another reason."""
    for other in ([], [8]):
        suspicion = Suspicion()
        for _ in range(4):
            assert suspicion.hung_up([7], alone=True) is None
        suspicion.hung_up(other, alone=True)

        assert not suspicion.probing
        assert [suspicion.hung_up([7], alone=True) for _ in range(4)] == [None] * 4


def test_what_is_taken_is_cleared() -> None:
    """A message that is taken is cleared, and all that went ahead of it; those behind are still sent one by one."""
    for key, cleared in (("topic", False), ("new", False), (7, False), (8, True), (9, True)):
        suspicion = Suspicion()
        for _ in range(2):
            suspicion.hung_up(["topic", 7, 8], alone=False)
        suspicion.taken(key)

        assert suspicion.probing is not cleared
