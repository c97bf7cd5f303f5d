#!/bin/sh
# generate.sh PERSON PRODUCT AUDIO OUTPUT PROMPT...: make one video with curl.
set -eu
url=${COINTERACT_URL:-http://127.0.0.1:8000}
[ $# -ge 5 ] || { echo "usage: $0 PERSON PRODUCT AUDIO OUTPUT PROMPT..." >&2; exit 2; }
person=$1 product=$2 audio=$3 output=$4
shift 4

request() {
    curl --silent --show-error --fail-with-body --retry 3 \
        ${COINTERACT_API_KEY:+--header "Authorization: Bearer $COINTERACT_API_KEY"} "$@"
}
# value NAME: the first text or number of that name in the answer. For anything more, use a JSON parser.
value() { printf '%s' "$answer" | grep -o "\"$1\": *\(\"[^\"]*\"\|[0-9.]*\)" | head -n 1 | sed 's/^"[^"]*": *"\{0,1\}//; s/"$//'; }

# One form field for each prompt; --form-string takes it as it is, even if it begins with @.
n=$#
while [ "$n" -gt 0 ]; do
    set -- "$@" --form-string "prompt=$1"
    shift
    n=$((n - 1))
done
# The same key and request make the same job: if the answer is lost on its way, a retry does not make a second one.
key=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
answer=$(request --header "Idempotency-Key: $key" --form "person_image=@$person" --form "product_image=@$product" \
    --form "audio=@$audio" "$@" "$url/v1/generate") || { echo "refused: $(value detail)" >&2; exit 1; }
job=$(value id)
echo "$job" >&2

while :; do
    answer=$(request "$url/v1/jobs/$job")
    status=$(value status)
    echo "$(value progress) % $status, $(value stage)" >&2
    case $status in
        succeeded) break ;;
        failed | canceled) echo "$status: $(value message)" >&2; exit 1 ;;
    esac
    sleep 1
done
request --output "$output" "$url/v1/jobs/$job/video"
echo "$output"
