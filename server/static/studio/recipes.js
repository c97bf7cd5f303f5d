// A job as a program: the same request for curl and for Python.

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

const FIELDS = ["size", "preset", "num_inference_steps", "guidance_scale", "flow_shift", "product_scale", "seed", "fit", "router_maps"];

/** The fields that make the same video from the same files. */
export const fieldsOf = (job) => ({ model: job.model, ...Object.fromEntries(FIELDS.map((name) => [name, job.params[name]])) });

export function asCurl(job) {
  const parts = [
    `curl -sS ${location.origin}/v1/generate`, '-H "Authorization: Bearer $COINTERACT_API_KEY"',
    "-F person_image=@person.png", "-F product_image=@product.png", "-F audio=@speech.wav",
    ...job.params.prompts.map((prompt) => `--form-string prompt=${quoted(prompt)}`),
    ...Object.entries(fieldsOf(job)).map(([name, value]) => `--form-string ${name}=${quoted(String(value))}`),
  ];
  return parts.join(" \\\n  ");
}

export function asPython(job) {
  const fields = { prompt: job.params.prompts, ...fieldsOf(job) };
  return [
    "from cointeract_client import Client", "",
    `with Client(${JSON.stringify(location.origin)}) as client:`,
    "    job = client.generate(",
    '        person_image="person.png",', '        product_image="product.png",', '        audio="speech.wav",',
    ...Object.entries(fields).map(([name, value]) => `        ${name}=${JSON.stringify(value)},`),
    "    )", '    client.download(job, "presenter.mp4")', "",
  ].join("\n");
}
