#!/usr/bin/env bash
# Asks the Python Packaging Advisory Database about everything that the locks name, without
# installing any of it. Status 1: a weakness is known, and named. Offline it says so, and is skipped.
# AUDIT_SERVICE=osv asks OSV instead of PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
pip_audit="pip-audit==2.10.1"

if ! reason=$(uv tool run "$pip_audit" --version 2>&1); then
  echo "skipped: $pip_audit cannot be had: ${reason##*$'\n'}" >&2
  exit 0
fi
found=0
for lock in locks/*.txt; do
  echo "$lock" >&2
  errors=$(mktemp)
  uv tool run "$pip_audit" --requirement "$lock" --require-hashes --disable-pip \
    --progress-spinner off --vulnerability-service "${AUDIT_SERVICE:-pypi}" 2>"$errors" || status=$?
  cat "$errors" >&2
  if grep -qE "ConnectionError|ServiceError|Max retries|Could not connect" "$errors"; then
    echo "skipped: the database cannot be reached" >&2
    rm -f "$errors"
    exit 0
  fi
  rm -f "$errors"
  [ "${status:-0}" = 0 ] || found=1
  unset status
done
exit $found
