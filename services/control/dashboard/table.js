// Tables: columns are declared once, rows are rebuilt; on a phone every row becomes a card that names its values.

import { isBusy, rebuild } from "./buttons.js";
import { element } from "./format.js";

export class Table {
  // columns: [{label, cell(entry) -> text or nodes, number, head, wide, long}]. head: the row's name. long: has a line of its own
  // on a phone. empty: what is said without rows.
  constructor(root, columns, empty) {
    this.columns = columns;
    this.empty = empty;
    this.body = element("tbody");
    this.none = element("p", { class: "quiet-text none" }, empty);
    const heads = columns.map((column) => element("th", { scope: "col", class: kind(column) }, column.label));
    this.table = element("table", {}, element("thead", {}, element("tr", {}, heads)), this.body);
    root.classList.add("table");
    root.replaceChildren(this.table, this.none);
    this.show([]);
  }

  // mark(entry): attributes of its row.
  show(entries, mark = () => ({})) {
    this.table.hidden = entries.length === 0;
    this.none.hidden = entries.length > 0;
    if (isBusy(this.body)) return;
    rebuild(this.body, ...entries.map((entry) => element("tr", mark(entry), this.columns.map((column) => this.#cell(column, entry)))));
  }

  #cell(column, entry) {
    const content = [column.cell(entry)].flat();
    return element(column.head ? "th" : "td", { class: kind(column), scope: column.head ? "row" : null, "data-label": column.label }, element("div", {}, content));
  }
}

function kind({ number, wide, long }) {
  return number ? "number" : wide ? "wide" : long ? "long" : null;
}
