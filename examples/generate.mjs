// node generate.mjs PERSON PRODUCT AUDIO OUTPUT PROMPT...: make one video with Node's own fetch (Node 20 or newer).
import { createWriteStream, openAsBlob } from "node:fs";
import { randomUUID } from "node:crypto";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { setTimeout as sleep } from "node:timers/promises";

const server = process.env.COINTERACT_URL ?? "http://127.0.0.1:8000";
const key = process.env.COINTERACT_API_KEY;
const headers = key ? { Authorization: `Bearer ${key}` } : {};

async function main([person, product, audio, output, ...prompts]) {
  if (!prompts.length) {
    console.error("usage: node generate.mjs PERSON PRODUCT AUDIO OUTPUT PROMPT...");
    return 2;
  }
  const form = new FormData();
  form.set("person_image", await openAsBlob(person));
  form.set("product_image", await openAsBlob(product));
  form.set("audio", await openAsBlob(audio));
  for (const prompt of prompts) form.append("prompt", prompt);
  // The same key and request make the same job: repeat the request with it if the answer is lost.
  const submitted = await fetch(`${server}/v1/generate`, {
    method: "POST", body: form, headers: { ...headers, "Idempotency-Key": randomUUID() },
  });
  let job = await submitted.json();
  if (!submitted.ok) {
    console.error(`refused: ${job.field ?? ""} ${job.detail}`);
    return 1;
  }
  console.error(job.id);
  process.on("SIGINT", async () => {
    await fetch(new URL(job.urls.cancel, server), { method: "POST", headers });
    process.exit(130);
  });
  while (!job.completed_at) {
    await sleep(1000);
    job = await (await fetch(new URL(job.urls.self, server), { headers })).json();
    console.error(`${Math.round(job.progress)} % ${job.status}, ${job.stage}`);
  }
  if (job.status !== "succeeded") {
    console.error(`${job.status}: ${job.error?.message ?? ""}`);
    return 1;
  }
  const video = await fetch(new URL(job.urls.video, server), { headers });
  if (!video.ok) throw new Error(`the video: HTTP ${video.status}`);
  await pipeline(Readable.fromWeb(video.body), createWriteStream(output));
  console.log(output);
  return 0;
}

process.exitCode = await main(process.argv.slice(2));
