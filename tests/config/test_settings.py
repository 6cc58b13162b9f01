"""Settings from the environment: bad values are refused by name, and no message shows a secret."""

from __future__ import annotations

import pytest

from animl_pipeline.config.settings import RENAMED, Settings, load_settings
from animl_pipeline.core.errors import SettingsError, redact_url

HIDDEN = "owl"


def error_of(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> SettingsError:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    return caught.value


@pytest.mark.parametrize(
    ("variable", "value", "shown"),
    [
        ("ANIML_TASK_RUNNER", "dusk", "'dusk'"),
        ("ANIML_STAGE", "Dev", "'Dev'"),
        ("ANIML_IMAGE_URL", f"https://ranger:{HIDDEN}@animl.camera/app", "'https://animl.camera/…'"),
        ("ANIML_NOTIFICATION_BLOCK", "Slack", "'Slack'"),
        ("ANIML_NOTIFICATION_BLOCK", f"https://hooks.slack.com/services/T0/{HIDDEN}", "'https://hooks.slack.com/…'"),
        ("ANIML_NOTIFICATION_BLOCK", f"hooks.slack.com/services/T0/{HIDDEN}", "'hooks.slack.com/…'"),
        ("ANIML_NOTIFICATION_BLOCK", f"slack://{HIDDEN}/T0", "'slack://…'"),
        ("ANIML_NOTIFICATION_BLOCK", f"smtp://ranger:{HIDDEN}/@host", "'smtp://…'"),
        ("ANIML_NOTIFICATION_BLOCK", f"ranger:{HIDDEN}@host/T0", "'…'"),
    ],
)
def test_an_invalid_value_is_refused_without_its_secret(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, shown: str) -> None:
    error = error_of(monkeypatch, variable, value)
    assert (error.code, error.details) == ("invalid_variable", {"variable": variable})
    assert str(error).endswith(shown)
    assert HIDDEN not in str(error)


@pytest.mark.parametrize("address", ["", " ", "s3://", "s3:///", "https://bucket/prefix", "s3:/bucket/prefix", "s3:bucket", "s3:", "file:/folder"])
def test_a_store_that_is_neither_a_folder_nor_in_s3_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert error_of(monkeypatch, "ANIML_STORE", address).details == {"variable": "ANIML_STORE"}


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_variable_is_refused_with_its_new_name(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    error = error_of(monkeypatch, old, "1")
    assert (error.code, error.details) == ("renamed_variable", {"old": old, "new": new})
    assert new.removeprefix("ANIML_").lower() in Settings.model_fields


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://user:owl@host/x?sig=1#part", "https://host/x"),
        ("https://user:o?w@host/x", "https://host/x"),
        ("https://host/?u=s3://owl", "https://host/"),
        ("smtp://user:owl/@host", "smtp://…@host"),
        ("user:owl@host/api", "…"),
        ("/data/a?b@c.jpg", "/data/a?b@c.jpg"),
        ("https://host/image@2x.jpg", "https://host/image@2x.jpg"),
    ],
)
def test_a_shown_address_has_no_user_password_or_query(address: str, shown: str) -> None:
    assert redact_url(address) == shown
