import pytest

from brain_align.common.errors import UserError
from brain_align.common.uris import check_uri, shown

SECRET = "AKIA4SECRET"


@pytest.mark.parametrize(
    ("uri", "variable"),
    [
        (f"s3://KEY:{SECRET}@bucket/store", "AWS_SECRET_ACCESS_KEY"),
        (f"s3://KEY:{SECRET}/with+slash@bucket/store", "AWS_SECRET_ACCESS_KEY"),
        (f"S3://{SECRET}@bucket", "AWS_SECRET_ACCESS_KEY"),
        (f"  s3://bucket/x?region=eu&secret_key={SECRET}", "AWS_SECRET_ACCESS_KEY"),
        (f"gs://{SECRET}@bucket", "GOOGLE_APPLICATION_CREDENTIALS"),
        (f"abfss://user:{SECRET}@account/x", "AZURE_STORAGE_KEY"),
        (f"https://user:{SECRET}@host/score", "token_variable"),
        (f"http://{SECRET}@host:8000", "token_variable"),
        (f"http://host/score?api_key={SECRET}", "token_variable"),
        (f"http://host/score?x=1&X-Amz-Signature={SECRET}", "token_variable"),
        (f"http://host/score?%74oken={SECRET}#x", "token_variable"),
    ],
)
def test_a_secret_in_a_uri_is_refused_and_not_shown(uri: str, variable: str) -> None:
    with pytest.raises(UserError, match=variable) as refusal:
        check_uri(uri, "store.uri")
    assert SECRET not in str(refusal.value) and "store.uri" in str(refusal.value)
    assert SECRET not in shown(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/path@x/store?region=eu-west-1&endpoint_override=host:9000&scheme=http",
        "http://localhost:8000/score@v1",
        "http://[::1]:8000/v1?model=a&monkey=1",
        "hdfs://namenode:9000/user@host/store",
        "/data/a@b:c/s3:/x",
        "org/model@revision",
        "module:function",
        "C:/data",
        "File: {prompt}",  # of an instruction
        "HTTP:",  # a stop string
        "",
    ],
)
def test_what_holds_no_secret_passes(uri: str) -> None:
    check_uri(uri, "store.uri")


@pytest.mark.parametrize("uri", [f"s3:/KEY:{SECRET}@bucket/x", f"S3:KEY:{SECRET}@b", f"https:/u:{SECRET}@host"])
def test_a_uri_with_one_slash_is_not_a_path(uri: str) -> None:
    with pytest.raises(UserError, match=r"begins with (s3|https)://") as refusal:
        check_uri(uri, "store.uri")
    assert SECRET not in str(refusal.value) + shown(uri)
