import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
REFERENCE = re.compile(r"`((?:test_\w+/)?test_\w+\.py)::(\w+)")


def test_every_test_that_the_docs_name_is_there():
    named = [
        (page.name, file, name)
        for page in sorted((REPOSITORY / "docs").glob("*.md"))
        for file, name in REFERENCE.findall(page.read_text())
    ]
    tests = {path: path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py")}
    missing = [
        reference
        for reference in named
        if not any(
            path.as_posix().endswith(f"/{reference[1]}") and f"def {reference[2]}(" in text
            for path, text in tests.items()
        )
    ]
    assert len(named) > 50
    assert missing == []
