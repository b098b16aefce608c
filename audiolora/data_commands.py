"""``audiolora data``: sets of recorded speech, from the command line."""


def data(name: str = "list", /) -> None:
    """Fetch a built-in set of recorded speech, as any user; without a name, list them.

    Args:
        name: such as prompts-en, or list.
    """
    from audiolora.speech.prompts import BUILTIN, fetch_builtin

    if name == "list":
        for builtin in BUILTIN.values():
            print(f"{builtin.name:<14} {builtin.description}; {builtin.licence}")
    else:
        print(fetch_builtin(name))
