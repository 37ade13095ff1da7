import subprocess
import sys

from mpcache.benchmarks.measure.usage import peak_memory, peak_memory_of_roles


def test_the_peak_memory_of_each_roles_process_is_told() -> None:
    own = peak_memory()
    if own is None:
        assert peak_memory_of_roles() == {}
        return
    code = "x = bytearray(b'x') * 50_000_000; del x; print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code, "dealer"], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        peaks = peak_memory_of_roles()
        process.communicate("\n")
    assert peaks.keys() == {"dealer"} and 50_000_000 < peaks["dealer"] < 500_000_000
