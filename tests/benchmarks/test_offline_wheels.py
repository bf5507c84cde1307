"""Whether the wheels for a machine without a network are those that it lacks."""

import zipfile

from benchmarks.offline_wheels import NAMES, list_requirements, needed_by


def test_versions_are_those_that_the_project_asks_for():
    found = {requirement.name: requirement for requirement in list_requirements()}
    assert tuple(found) == NAMES
    assert "2.8" in found["pydantic"].specifier and "2.7" not in found["pydantic"].specifier


def test_what_a_wheel_needs_is_taken_without_torch_nvidia_and_extras(tmp_path):
    needs = ["typing-extensions>=4", "torch<3", "NVIDIA_cublas", "email-validator; extra == 'email'"]
    needs += ["exceptiongroup; python_version < '3.11'", "colorama; sys_platform == 'win32'"]
    path = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "a-1.dist-info/METADATA", "\n".join(["Name: a", *(f"Requires-Dist: {each}" for each in needs)])
        )
    assert [str(each) for each in needed_by(path, "3.12")] == ["typing-extensions>=4"]
    assert [each.name for each in needed_by(path, "3.10")] == ["typing-extensions", "exceptiongroup"]
