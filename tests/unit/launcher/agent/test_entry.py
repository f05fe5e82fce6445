import io

from bundlerun.launcher.agent.entry import Tee


def test_text_goes_to_console_and_log_but_a_progress_bar_only_to_the_console() -> None:
    console, log = io.StringIO(), io.StringIO()
    tee = Tee(console, log)
    assert tee.write("a line\n") == 7
    tee.write("\r 50 %")
    assert (console.getvalue(), log.getvalue()) == ("a line\n\r 50 %", "a line\n")


def test_a_worker_still_sees_its_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert Tee(Terminal(), io.StringIO()).isatty()
