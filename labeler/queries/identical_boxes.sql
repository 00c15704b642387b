-- share of images with the commonest relative box per part: an engine that does not look gives one near 100 %
with relative as (
    select label_run, dataset, part,
        [round(x_min / width, 2), round(y_min / height, 2), round(x_max / width, 2), round(y_max / height, 2)] as box
    from labels
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
