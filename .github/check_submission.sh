#!/usr/bin/env bash
# Usage: BASE=COMMIT check_submission.sh CLONE [SAMPLES]
# Checks the entries that differ between BASE and the clone, and attacks samples of them again.
# ATTEMPT is the number of this check among those of the author, at least 1. Later attempts draw more samples, so that
# repeated pushes do not help a forger. FINDINGS is a folder for the attestations and the images that break samples.
# It runs no code of the clone, and git does not use its links or hooks: files are read from the history.
set -euo pipefail
clone=$1 samples=${2:-40} most=100000000 attempt=${ATTEMPT:-1} findings=${FINDINGS:-}
if ! [[ $attempt =~ ^[1-9][0-9]*$ ]]; then
  printf 'ATTEMPT must be a positive integer, got %q\n' "$attempt"
  exit 1
fi
if [ ${#attempt} -gt 1 ]; then
  attempt=10 # limits the time of the check
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git=(git -C "$clone" -c core.hooksPath=/dev/null -c core.fsmonitor=false -c protocol.file.allow=user)
if [ -n "${BASE_REPOSITORY:-}" ]; then
  "${git[@]}" fetch --quiet --no-tags "$BASE_REPOSITORY" "$BASE"
fi
"${git[@]}" diff --no-renames --name-only -z "$BASE...HEAD" > "$work/changed"

# Writes a file of a commit to a folder. Fails if the file does not exist or is not a plain file.
take() {
  local commit=$1 name=$2 folder=$3
  [ "$("${git[@]}" ls-tree "$commit" -- "$name" | cut -d ' ' -f 1)" = 100644 ] || return 1
  mkdir -p "$folder/$(dirname "$name")"
  "${git[@]}" cat-file blob "$commit:$name" > "$folder/$name"
}

# Writes the leaderboards of the base branch to a folder.
take_base() {
  local folder=$1
  mkdir -p "$folder"
  if "${git[@]}" cat-file -e "$BASE:leaderboards" 2> "$work/ignored"; then
    "${git[@]}" archive "$BASE" leaderboards | tar -x -C "$folder"
  fi
}

# The entries of other models, so that the checks can compare names and weights with them. The tables are compared with
# the entries in a second folder, because the verification changes the status of an entry.
take_base "$work/new"
take_base "$work/submitted"
entries=() tables=
while IFS= read -r -d '' name; do
  if [ "$name" = README.md ] || [ "$name" = leaderboards/README.md ]; then
    if ! take HEAD "$name" "$work/tables"; then
      printf '%q is removed, or is not a plain file: a submission may not remove files\n' "$name"
      exit 1
    fi
    # The tables are generated. `vlmbench leaderboard check` below compares them with the entries.
    tables=1
    if [ "$name" = README.md ]; then
      for commit in "$BASE" HEAD; do
        # Only the lines between the markers are left out, so that no block can be added.
        "${git[@]}" cat-file blob "$commit:$name" | sed '/^<!-- leaderboard /,/^<!-- end of leaderboard -->/{/^<!--/!d}' > "$work/$commit.md"
      done
      if ! cmp -s "$work/$BASE.md" "$work/HEAD.md"; then
        echo "a submission may change only the table in README.md, and this one changes more of it"
        exit 1
      fi
    fi
    continue
  fi
  if ! [[ $name =~ ^leaderboards/[A-Za-z0-9._-]+/([A-Za-z0-9._+@-]+\.json|records/[A-Za-z0-9._+@-]+\.parquet|counterexamples/[0-9a-f]{64}\.safetensors)$ ]]; then
    printf 'a submission may change entries, records and counterexamples only, and this one changes %q\n' "$name"
    exit 1
  fi
  if ! take HEAD "$name" "$work/new" || ! take HEAD "$name" "$work/submitted"; then
    printf '%q is removed, or is not a plain file: a submission may not remove files\n' "$name"
    exit 1
  fi
  if [ "$("${git[@]}" cat-file -s "HEAD:$name")" -gt "$most" ]; then
    printf '%q has more than %s bytes: publish it, and ask a maintainer to verify it\n' "$name" "$most"
    exit 1
  fi
  if [[ $name == */counterexamples/* ]]; then
    continue # copied below with the entry
  fi
  # A changed records file means that its entry must be checked too.
  entry=${name/records\//}
  entry=${entry%.parquet}
  entry=${entry%.json}.json
  [[ " ${entries[*]} " == *" $entry "* ]] || entries+=("$entry")
done < "$work/changed"

if [ ${#entries[@]} -eq 0 ]; then
  echo "there is no entry in this submission"
  exit 1
fi
if [ -n "$tables" ]; then
  take "$BASE" README.md "$work/submitted" || true
  cp -R "$work/tables/." "$work/submitted/"
  (cd "$work/submitted" && vlmbench leaderboard check --folder leaderboards)
fi
for name in "${entries[@]}"; do
  if ! take HEAD "$name" "$work/new"; then
    printf 'there is no entry %q for the records that this submission changes\n' "$name"
    exit 1
  fi
  folder=$(dirname "$name") model=$(basename "$name" .json)
  take HEAD "$folder/records/$model.parquet" "$work/new" || true # the records may be at the URL in the entry
  while IFS= read -r -d '' images; do
    take HEAD "$images" "$work/new"
  done < <("${git[@]}" ls-tree --name-only -z HEAD -- "$folder/counterexamples/")
  take "$BASE" "$name" "$work/old" || true # does not exist before the first submission
  (cd "$work/new" && vlmbench verify --check --since "$work/old/$name" "$name")
  # A maintainer who has the data of other tracks verifies their entries.
  if [[ $name == leaderboards/mini/* ]]; then
    mkdir -p "${findings:-$work/findings}"
    kept=$(cd "${findings:-$work/findings}" && pwd)
    code=0
    (cd "$work/new" && vlmbench verify --samples "$samples" --attempt "$attempt" --attestation "$kept/$model.json" \
      "$name") || code=$?
    # The images that broke a sample are kept, also if the check failed.
    cp "$work/new/$folder"/counterexamples/*.safetensors "$kept" 2>/dev/null || true
    if [ "$code" -ne 0 ]; then
      exit "$code"
    fi
  fi
done
