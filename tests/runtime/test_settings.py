"""Settings: where they come from, which wins, what is refused, and that no secret is shown."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from runtape.domain.limits import MAXIMUM, Limits
from runtape.runtime.settings import CONFIG_FILE, ENV_PREFIX, SettingRow, Settings, default_data_dir, describe


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in list(os.environ):
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))


def write(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(text)


def rows(folder: Path) -> dict[str, SettingRow]:
    return {row.name: row for row in describe(folder)}


def test_nothing_has_to_be_set() -> None:
    settings = Settings()
    assert settings.limit_policy.default == Limits()
    assert settings.limit_policy.maximum == MAXIMUM
    assert settings.capacity.running == settings.capacity.running_per_project == settings.capacity.running_per_lang
    assert settings.allowances["execute"].limit == 600


def test_the_data_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_data_dir() == tmp_path / "home" / "runtape"
    monkeypatch.setenv("RUNTAPE_DATA", "/elsewhere")
    assert default_data_dir() == Settings().data == Path("/elsewhere")


def test_the_file_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path, 'log_level = "debug"\n[limits]\nwall_s = 5\nmemory_mb = 100\n')
    monkeypatch.setenv("RUNTAPE_LIMITS__WALL_S", "7")
    settings = Settings(data=tmp_path)
    assert settings.log_level == "debug"
    assert settings.limits.limits() == Limits(wall_s=7, memory_mb=100)
    shown = rows(tmp_path)
    assert (shown["limits.wall_s"].value, shown["limits.wall_s"].source) == ("7.0", "RUNTAPE_LIMITS__WALL_S")
    assert (shown["limits.memory_mb"].value, shown["limits.memory_mb"].source) == ("100", CONFIG_FILE)
    assert (shown["limits.cpu_s"].value, shown["limits.cpu_s"].source) == ("10.0", "default")
    assert shown["log_level"].source == CONFIG_FILE


def test_the_file_of_another_folder_is_not_read(tmp_path: Path) -> None:
    write(tmp_path / "other", 'log_level = "debug"\n')
    assert Settings(data=tmp_path).log_level == "info"


def test_secrets_are_masked_wherever_they_come_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert rows(tmp_path)["admin_password"].value == ""
    write(tmp_path, 'admin_password = "hunter2-file"\n')
    from_file = rows(tmp_path)["admin_password"]
    monkeypatch.setenv("RUNTAPE_ADMIN_PASSWORD", "hunter2-environment")
    from_environment = rows(tmp_path)["admin_password"]
    for row in (from_file, from_environment):
        assert row.secret
        assert "hunter2" not in repr(row)
        assert row.value == "********"
    assert "hunter2" not in repr(Settings(data=tmp_path))
    assert "hunter2" not in str(describe(tmp_path))


def test_every_setting_is_shown_with_a_description() -> None:
    found = describe()
    assert len(found) == len({row.name for row in found}) > 25
    assert [row.name for row in found if not row.description] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RUNTAPE_LOG_LEVEL", "loud"),
        ("RUNTAPE_ADMISSION__RUNNING", "0"),
        ("RUNTAPE_ADMISSION__QUEUED", "-1"),
        ("RUNTAPE_LIMITS__WALL_S", "0"),
        ("RUNTAPE_LIMITS__NO_SUCH", "1"),
        ("RUNTAPE_RATE_LIMITS__CALLS_PER_MINUTE", "many"),
        ("RUNTAPE_TRUSTED_PROXIES", "frontend"),
        ("RUNTAPE_TRUSTED_PROXIES", "*"),
        ("RUNTAPE_TRUSTED_PROXIES", "10.0.0.2, 10.0.0.1/24"),
    ],
)
def test_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        Settings()


def test_a_default_beyond_its_maximum_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "[maximum]\nwall_s = 5\n")
    with pytest.raises(ValidationError, match=r"limits.wall_s is 10.0, more than maximum.wall_s, which is 5"):
        Settings(data=tmp_path)


def test_the_capacity_of_one_project_can_be_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTAPE_ADMISSION__RUNNING", "8")
    monkeypatch.setenv("RUNTAPE_ADMISSION__RUNNING_PER_PROJECT", "3")
    capacity = Settings().capacity
    assert (capacity.running, capacity.running_per_project, capacity.running_per_lang) == (8, 3, 8)


def test_a_cluster_names_all_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTAPE_PROFILE", "cluster")
    needed = {
        "RUNTAPE_KAFKA__BOOTSTRAP": "kafka:9092",
        "RUNTAPE_REGISTRY__URL": "http://registry:8081",
        "RUNTAPE_MONGO__URL": "mongodb://mongo",
        "RUNTAPE_REDIS__URL": "redis://redis",
    }
    names = list(needed)
    for count in range(len(names)):
        with pytest.raises(ValidationError, match=f"needs {', '.join(names[count:])}"):
            Settings()
        monkeypatch.setenv(names[count], needed[names[count]])
    assert Settings().profile == "cluster"
