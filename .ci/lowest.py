"""The lowest versions that pyproject.toml allows, as constraints for pip: "jax==0.10" where it says "jax>=0.10".

Not of linters: what is checked with them does not run anywhere else.
"""

import re
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]

extras = [
    requirement for name, extra in project["optional-dependencies"].items() if name != "lint" for requirement in extra
]
for requirement in (*project["dependencies"], *extras):
    found = re.match(r"([\w-]+)(?:\[\w+\])?([>=]=)([\d.]+)", requirement)
    if found is None:
        raise SystemExit(f"pyproject.toml gives no lowest version of {requirement}")
    print(f"{found[1]}=={found[3]}")
