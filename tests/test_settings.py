"""Settings, log and progress."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

import scanpy_scgpt as scgpt
from scanpy_scgpt._progress import track
from scanpy_scgpt._validate import check_key, check_one_of, seed_of


def test_settings_are_checked_and_restored():
    before = repr(scgpt.settings)
    with pytest.raises(ValueError, match="verbosity='loud': use one of 'error'"):
        scgpt.settings.verbosity = "loud"
    with pytest.raises(AttributeError, match="There is no setting 'modell'; settings: model"):
        scgpt.settings.modell = "mini"
    with pytest.raises(TypeError, match="progress_bar=1: use True or False"):
        scgpt.settings.progress_bar = 1
    with pytest.raises(TypeError, match="model=3: use the name"):
        scgpt.settings.model = 3
    with pytest.raises(TypeError, match="cache_dir='': use the path of a folder"):
        scgpt.settings.cache_dir = ""
    with scgpt.settings.override(model="other", verbosity="error"):
        assert scgpt.settings.model == "other"
        assert logging.getLogger("scanpy_scgpt").level == logging.ERROR
    assert repr(scgpt.settings) == before
    assert logging.getLogger("scanpy_scgpt").level == logging.INFO


def test_environment_sets_the_defaults():
    code = "import scanpy_scgpt as s; print(s.settings)"
    env = {
        "SCANPY_SCGPT_MODEL": "x",
        "SCANPY_SCGPT_VERBOSITY": "error",
        "SCANPY_SCGPT_PROGRESS": "0",
        "SCANPY_SCGPT_CACHE": "/c",
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "Settings(model='x', verbosity='error', progress_bar=False, cache_dir='/c')\n"


def _settings_in(env, before=""):
    env = {"SCANPY_SCGPT_CACHE": "/c", **env}
    code = f"{before}\nimport logging, scanpy_scgpt as s; print(s.settings, logging.getLogger('scanpy_scgpt').level)"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_an_unknown_verbosity_of_the_environment_warns():
    out, err = _settings_in({"SCANPY_SCGPT_VERBOSITY": "loud"})
    assert "verbosity='info'" in out
    assert "SCANPY_SCGPT_VERBOSITY='loud' is unknown, 'info' is used. Set it to one of 'error'" in err


@pytest.mark.parametrize(
    ("value", "shown"), [("0", False), ("false", False), ("No", False), ("off", False), ("1", True), ("yes", True)]
)
def test_words_for_no_progress(monkeypatch, value, shown):
    monkeypatch.setenv("SCANPY_SCGPT_PROGRESS", value)
    monkeypatch.setenv("SCANPY_SCGPT_VERBOSITY", "info")
    assert type(scgpt.settings)().progress_bar is shown


def test_the_cache_is_where_caches_are(monkeypatch):
    monkeypatch.delenv("SCANPY_SCGPT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert type(scgpt.settings)().cache_dir == "/caches/scanpy_scgpt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert type(scgpt.settings)().cache_dir == "~/.cache/scanpy_scgpt"  # no home is needed until it is used


def test_the_level_of_the_application_stays():
    before = "import logging; logging.getLogger('scanpy_scgpt').setLevel(logging.CRITICAL)"
    assert _settings_in({}, before) == (
        "Settings(model='mini', verbosity='error', progress_bar=True, cache_dir='/c') 50\n",
        "",
    )
    out, _ = _settings_in({"SCANPY_SCGPT_VERBOSITY": "debug"}, before)
    assert out == "Settings(model='mini', verbosity='debug', progress_bar=True, cache_dir='/c') 10\n"
    out, _ = _settings_in({}, before.replace("CRITICAL", "WARNING"))
    assert "verbosity='warning'" in out


def test_parts_of_the_network_are_reached_from_the_package():
    assert scgpt.nn.TransformerConfig.__name__ == "TransformerConfig"
    assert scgpt.tokenizer.GeneVocab.__name__ == "GeneVocab"
    assert {"nn", "tokenizer"} <= set(scgpt.__all__)


def test_receipts_reach_standard_error_without_any_set_up():
    code = "from scanpy_scgpt._logging import get_logger; get_logger('scanpy_scgpt.x').info('a receipt')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "a receipt\n"
    configured = f"import logging; logging.basicConfig(level=logging.INFO, format='root %(message)s'); {code}"
    done = subprocess.run([sys.executable, "-c", configured], capture_output=True, text=True, check=True)
    assert done.stderr == "root a receipt\n"  # once, through the application's own handler


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = scgpt.nothing
    assert "tl" in dir(scgpt)


def test_progress_without_a_terminal_does_nothing(capfd):
    with track("x", total=3) as advance:
        advance(1)
    assert capfd.readouterr() == ("", "")


def test_checks_say_what_to_do():
    import pandas as pd

    with pytest.raises(KeyError, match="adata.obs has no column 'bath'; did you mean 'batch'. Columns: batch, type"):
        check_key(pd.DataFrame({"batch": [], "type": []}), "bath", where="adata.obs")
    with pytest.raises(ValueError, match="how='clss': use one of 'cls', 'mean'; did you mean 'cls'"):
        check_one_of("clss", ["cls", "mean"], name="how")
    with pytest.raises(TypeError, match="rng='a': use an integer seed"):
        seed_of("a")
