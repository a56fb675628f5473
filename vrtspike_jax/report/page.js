for (const compare of document.querySelectorAll(".compare")) {
  const stage = compare.querySelector(".stage");
  const range = compare.querySelector("input");
  const selects = compare.querySelectorAll("select");
  const names = Object.fromEntries([...selects[0].options].map((o) => [o.value, o.text]));
  const show = () => {
    const { left, right } = compare.dataset;
    for (const image of stage.querySelectorAll("img")) {
      image.classList.toggle("left", image.dataset.kind === left);
      image.classList.toggle("right", image.dataset.kind === right);
      image.setAttribute("aria-hidden", ![left, right].includes(image.dataset.kind));
    }
    stage.style.setProperty("--cut", range.value + "%");
    range.setAttribute("aria-valuetext",
      `${range.value}% ${names[left]}, ${100 - range.value}% ${names[right]}`);
  };
  range.addEventListener("input", show);
  for (const select of selects) {
    select.addEventListener("change", () => {
      compare.dataset[select.dataset.side] = select.value;
      show();
    });
  }
  show();
}
