"""URIs as users write them: secrets in them are refused, and never shown."""

import re
from urllib.parse import unquote

from brain_align.common.errors import UserError

_S3 = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)"
_GCS = "GOOGLE_APPLICATION_CREDENTIALS"
_VARIABLES = {
    **dict.fromkeys(("s3", "s3a", "s3n"), _S3),
    **dict.fromkeys(("gs", "gcs"), _GCS),
    **dict.fromkeys(("abfs", "abfss", "az"), "AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY"),
    "hf": "HF_TOKEN",
}
_OWN_VARIABLE = "a variable of your choice, which the scorer's token_variable names"
_SCHEMES = r"(?:s3[an]?|gs|gcs|abfss?|az|hdfs|viewfs|hf|https?|ftp|file)"
_ONE_SLASH = re.compile(rf"\s*({_SCHEMES}):(?!//)(?=\S)", re.IGNORECASE)
_URI = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*)://")
_SECRET_NAME = re.compile(
    r"(?i)(.*[-_.])?(api_?key|apikey|access_?key(_?id)?|account_?key|secret(_?access)?(_?key)?|key|(auth_?)?token|auth"
    r"|authorization|passw(or)?d|pwd|sig(nature)?|credentials?)|awsaccesskeyid"
)


def shown(uri: str) -> str:
    """Return a URI as messages may show it: without its user part and its query, which may hold keys."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return f"{found[1]}:/…" if (found := _ONE_SLASH.match(uri)) and "@" in uri else uri
    user = _user(rest)
    rest = rest if user is None else rest[len(user) + 1 :]
    return f"{scheme}{separator}{rest.partition('?')[0].rstrip('/')}"


def _user(rest: str) -> str | None:
    """Return the user part of what follows `://`, if there is one."""
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        return authority[: authority.rindex("@")]
    port = authority.rpartition("]")[2].partition(":")[2]
    if port and not port.isdigit() and "@" in rest:  # a key that is not escaped, and holds arbitrary characters
        return rest[: rest.rindex("@")]
    return None


def check_uri(text: str, where: str) -> None:
    """Refuse a URI that holds a password or a key, and one without `//`, which would be taken for a path.

    `where` names the setting or argument. The URI itself is not in the message if it holds a secret.

    Raises:
        UserError: it does.
    """
    if found := _ONE_SLASH.match(text):
        scheme = found[1].lower()
        raise UserError(f"{where} begins with {scheme}:, but a URI begins with {scheme}://; correct it.")
    if not (found := _URI.match(text)):
        return
    rest = text[found.end() :]
    query = rest.partition("?")[2].partition("#")[0]
    names = [unquote(pair.partition("=")[0]) for pair in re.split("[&;]", query)]
    if _user(rest) is None and not any(map(_SECRET_NAME.fullmatch, names)):
        return
    variables = _VARIABLES.get(found[1].lower(), _OWN_VARIABLE)
    raise UserError(
        f"{where} is a URI that holds a user name, a password or a key (it is not shown here), but recipes and "
        f"commands are kept in files and logs; remove it from the URI, and put it into the environment: {variables}."
    )
