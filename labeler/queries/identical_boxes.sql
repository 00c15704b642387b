-- share of images with the commonest relative box per part: an engine that does not look gives one near 100 %
with relative as (
    select label_run, dataset, part,
        [round(rel_x_min, 2), round(rel_y_min, 2), round(rel_x_max, 2), round(rel_y_max, 2)] as box
    from parts
    where status = 'ok'
), counted as (
    select label_run, dataset, part, box, count(*) as images from relative group by all
)
select label_run, dataset, part, sum(images) as boxes, count(*) as distinct_boxes,
    arg_max(box, images) as commonest_box,
    round(100.0 * max(images) / sum(images), 2) as commonest_percent
from counted
group by label_run, dataset, part
order by label_run, dataset, part
