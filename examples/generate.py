"""python generate.py PERSON PRODUCT AUDIO OUTPUT PROMPT...: make one video with httpx."""

import os
import sys
import time
import uuid
from pathlib import Path

import httpx


def main(person: str, product: str, audio: str, output: str, *prompts: str) -> int:
    key = os.environ.get("COINTERACT_API_KEY")
    client = httpx.Client(
        base_url=os.environ.get("COINTERACT_URL", "http://127.0.0.1:8000"),
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=60,
    )
    inputs = {"person_image": person, "product_image": product, "audio": audio}
    submitted = client.post(
        "/v1/generate",
        data={"prompt": list(prompts)},
        files={field: Path(file).read_bytes() for field, file in inputs.items()},
        # The same key and request make the same job: repeat the request with it if the answer is lost.
        headers={"Idempotency-Key": str(uuid.uuid4())},
    )
    if submitted.is_error:
        problem = submitted.json()
        print(f"refused: {problem.get('field') or ''} {problem['detail']}", file=sys.stderr)
        return 1
    job = submitted.json()
    print(job["id"], file=sys.stderr)
    try:
        while job["completed_at"] is None:
            time.sleep(1)
            job = client.get(job["urls"]["self"]).raise_for_status().json()
            print(f"{job['progress']:.0f} % {job['status']}, {job['stage']}", file=sys.stderr)
    except KeyboardInterrupt:
        client.post(job["urls"]["cancel"])
        raise
    if job["status"] != "succeeded":
        print(f"{job['status']}: {(job['error'] or {}).get('message', '')}", file=sys.stderr)
        return 1
    with client.stream("GET", job["urls"]["video"]) as video, Path(output).open("wb") as file:
        video.raise_for_status()
        for chunk in video.iter_bytes():
            file.write(chunk)
    print(output)
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 6:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
