// Reads the server's own OpenAPI document and shows it. No other site is asked for anything.

const make = (tag, text, className) => {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (className) element.className = className;
  return element;
};

let openapi;
const resolved = (schema) => schema?.$ref
  ? schema.$ref.slice(2).split("/").reduce((at, name) => at[name], openapi) : schema ?? {};

function typeOf(given) {
  const schema = resolved(given);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.anyOf) return schema.anyOf.map(typeOf).filter((type) => type !== "null").join(" | ");
  if (schema.format === "binary") return "file";
  if (schema.type === "array") return `${typeOf(schema.items)}[]`;
  const limits = [["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"], ["maxLength", "length ≤"]];
  const bounds = limits.filter(([name]) => schema[name] !== undefined).map(([name, sign]) => `${sign} ${schema[name]}`);
  return [schema.type ?? "any", ...bounds].join(" ");
}

function table(rows) {
  const made = make("table");
  for (const { name, required, type, text } of rows) {
    const line = make("tr");
    const label = make("th");
    label.append(make("code", name, required ? "required" : ""));
    line.append(label, make("td", type), make("td", text));
    made.append(line);
  }
  return made;
}

function fields(given) {
  const schema = resolved(given);
  return Object.entries(schema.properties ?? {}).map(([name, property]) => ({
    name, required: schema.required?.includes(name), type: typeOf(property), text: resolved(property).description,
  }));
}

function example(method, path, operation) {
  const parts = [`curl${method === "GET" ? "" : ` -X ${method}`} ${location.origin}${path}`];
  if (operation.security) parts.push('-H "Authorization: Bearer $COINTERACT_API_KEY"');
  if (operation.requestBody?.content["multipart/form-data"]) {
    parts.push("-F person_image=@person.png", "-F product_image=@product.png", "-F audio=@speech.wav", '-F "prompt=She shows the bottle."');
  }
  return parts.join(" \\\n  ");
}

function operationCard(path, method, operation) {
  const card = make("details", "", "card");
  const summary = make("summary");
  const title = make("h2");
  title.append(make("span", method.toUpperCase(), "method"), make("code", path), make("span", `  ${operation.summary ?? ""}`));
  summary.append(title);
  card.append(summary, make("p", operation.description));
  const parameters = operation.parameters ?? [];
  if (parameters.length) {
    card.append(make("h3", "Parameters"), table(parameters.map((one) => ({
      name: one.name, required: one.required, type: `${one.in}: ${typeOf(one.schema)}`, text: one.description,
    }))));
  }
  for (const [type, body] of Object.entries(operation.requestBody?.content ?? {})) {
    card.append(make("h3", `Body: ${type}`), table(fields(body.schema)));
  }
  for (const [status, response] of Object.entries(operation.responses)) {
    const [type, content] = Object.entries(response.content ?? {})[0] ?? ["", {}];
    card.append(make("h3", `Answer ${status}${type && `: ${type}`}`), make("p", response.description));
    if (status !== "default") card.append(table(fields(content.schema)));
  }
  card.append(make("h3", "Try it"), make("pre", example(method.toUpperCase(), path, operation)));
  return card;
}

const response = await fetch("/openapi.json");
openapi = await response.json();
const main = document.querySelector("#operations");
main.append(make("p", openapi.info.description));
for (const [path, methods] of Object.entries(openapi.paths)) {
  for (const [method, operation] of Object.entries(methods)) main.append(operationCard(path, method, operation));
}
