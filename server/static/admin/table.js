// A table that becomes a list of cards on a narrow screen. Its roles are written down, because that layout takes them away.

import { html } from "../vendor/htm-preact.js";

/** `rows`: [{ id, look, cells }], with a cell for each of the `columns`. */
export const Table = ({ label, columns, rows }) => html`<table role="table" aria-label=${label}>
  <thead role="rowgroup"><tr role="row">${columns.map((name) => html`<th role="columnheader" scope="col">${name}</th>`)}</tr></thead>
  <tbody role="rowgroup">${rows.map(({ id, look, cells }) => html`<tr role="row" key=${id} class=${look} data-id=${id}>
    ${cells.map((cell, number) => html`<td role="cell" data-name=${columns[number]}><div>${cell}</div></td>`)}</tr>`)}</tbody></table>`;
