#!/usr/bin/env bash
# Usage: GH_TOKEN=TOKEN REPOSITORY=OWNER/NAME ACTOR=LOGIN RUN_ATTEMPT=N count_attempts.sh
# Prints attempt=N, where N is the number of checks of submissions by the author in the last 30 days, this one included.
set -euo pipefail
since=$(date -u -d '30 days ago' +%Y-%m-%d)
runs=$(gh api -X GET "repos/$REPOSITORY/actions/workflows/submission.yml/runs" \
  -f event=pull_request -f "actor=$ACTOR" -f "created=>=$since" -f per_page=1 --jq .total_count)
if ! [[ $runs =~ ^[0-9]+$ ]]; then
  echo "GitHub gave no number of earlier checks" >&2
  exit 1
fi
attempt=$((runs + RUN_ATTEMPT - 1))
echo "attempt=$((attempt > 1 ? attempt : 1))"
