(() => {
  const field = document.getElementById("filter");
  const status = document.getElementById("found");
  const deltas = [...document.querySelectorAll("[data-words]")];
  const groups = [...document.querySelectorAll(".base")];
  const show = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const delta of deltas) {
      delta.hidden = !words.every((word) => delta.dataset.words.includes(word));
      found += !delta.hidden;
    }
    for (const group of groups) group.hidden = !group.querySelector("[data-words]:not([hidden])");
    status.textContent = words.length ? `${found} of ${deltas.length} shown` : "";
  };
  document.getElementById("search").hidden = false;
  field.addEventListener("input", show);
  show();
})();
