// The masks of a ranked gallery, on and off.
const box = document.getElementById("masks");
const set = () => document.body.classList.toggle("with-masks", box.checked);
box.onchange = set;
document.addEventListener("keydown", (event) => { if (event.key === "m") { box.checked = !box.checked; set(); } });
set();
