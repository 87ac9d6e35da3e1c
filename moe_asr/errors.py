"""The one exception for everything a user can put right."""


class UserError(ValueError):
    """Bad input, configuration or file.

    The message is a single line: what is wrong, where, and what to do about it. Commands print it as
    `error: <message>` and exit with code 1, without a traceback.
    """


class SettingsChanged(UserError):
    """What lies here was made with other settings, so that it cannot be gone on with."""
