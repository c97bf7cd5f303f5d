// A job as a program: the same request for curl and for Python.

const FILE_NAMES = { person_image: "person.png", product_image: "product.png", audio: "speech.wav", pose_video: "pose.mp4" };

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** [field, name of a file] for each file that the job was made from. */
const filesOf = (job) => Object.keys(job.urls.inputs).map((field) => [field, FILE_NAMES[field]]);

/** All settings but the prompts, which whoever copies a program wants to read and change. */
function settingsOf(job) {
  const { prompts: _, ...settings } = job.params;
  return JSON.stringify(settings);
}

export function asCurl(job) {
  const parts = [
    `curl -sS ${location.origin}/v1/generate`, '-H "Authorization: Bearer $COINTERACT_API_KEY"',
    ...filesOf(job).map(([field, name]) => `-F ${field}=@${name}`),
    ...job.params.prompts.map((prompt) => `--form-string prompt=${quoted(prompt)}`),
    `--form-string model=${quoted(job.model)}`, `--form-string params=${quoted(settingsOf(job))}`,
  ];
  return parts.join(" \\\n  ");
}

/** JSON texts, numbers and lists are Python as well; `true`, `false` and `null` are not, so the settings stay a text. */
export function asPython(job) {
  return [
    "import os", "from cointeract_client import Client", "",
    `with Client(${JSON.stringify(location.origin)}, os.environ.get("COINTERACT_API_KEY")) as client:`,
    "    job = client.generate(",
    ...filesOf(job).map(([field, name]) => `        ${field}=${JSON.stringify(name)},`),
    `        prompt=${JSON.stringify(job.params.prompts)},`, `        model=${JSON.stringify(job.model)},`,
    `        params=${JSON.stringify(settingsOf(job))},`,
    "    )", '    client.download(job, "presenter.mp4")', "",
  ].join("\n");
}
