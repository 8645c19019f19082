"""Files of API keys for tests."""

from service.keys import digest_of, new_token

ALICE, BOB = new_token(), new_token()


def stanza(name: str, token: str, **limits: int) -> str:
    lines = [f"[keys.{name}]", f'sha256 = "{digest_of(token).hex()}"']
    return "\n".join([*lines, *(f"{limit} = {value}" for limit, value in limits.items()), ""])
