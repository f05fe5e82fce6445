from bundlerun.launcher.rendezvous.protocol.leases import Leases


def test_who_is_silent_for_longer_than_the_lease_is_named() -> None:
    leases: Leases[str] = Leases(1.5, look_every_s=0.1, now=0.0)
    leases.hear("a", 0.0)
    leases.hear("b", 0.0)
    silent = []
    for tenth in range(1, 17):
        leases.hear("b", tenth / 10)
        silent = leases.look(tenth / 10)
    assert silent == ["a"]
    leases.forget("a")
    assert leases.look(1.7) == []


def test_our_own_pause_is_nobodys_silence() -> None:
    leases: Leases[str] = Leases(1.5, look_every_s=0.1, now=0.0)
    leases.hear("a", 0.0)
    assert leases.look(0.1) == []
    assert leases.look(20.0) == []
    assert leases.look(20.1) == []
