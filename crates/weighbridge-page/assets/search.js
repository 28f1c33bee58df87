// The field that searches a page's table, in pages that have a `table` and a `model`.

let typing = 0;
byId("search").addEventListener("input", (event) => {
  clearTimeout(typing);
  typing = setTimeout(() => table.search(event.target.value), model.count > 5000 ? 80 : 0);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || !model || event.target instanceof HTMLInputElement) return;
  byId("search").focus();
  event.preventDefault();
});

function search(text) {
  byId("search").value = text;
  table.search(text);
}
